"""``compatibility: published``: what the released systems do differently, as one preset under a config's own values.

In: the values of a config, the head's name, values that the backbone's preset has. Out: the values with every flag of
the presets in its place, unless the config says otherwise. What the flags are, each head lists
(``TemporalHead.published``); it knows none of them. Those of the head itself go by the preset's name, which
``build_head`` spells out.
"""

from collections.abc import Mapping
from types import MappingProxyType

from videollm.common.config import ConfigError, merge, need, unknown
from videollm.heads.interface import COMPATIBILITY, head_class


def lay_preset(values: dict, head: str | None, sampler: Mapping = MappingProxyType({})) -> dict:
    """``values`` without ``compatibility``, laid over the preset that it names for ``head``, and for the backbone's
    frames (``sampler``).

    Raises:
        ConfigError: another name than ``default`` and ``published``, or neither head nor backbone has a published
            system.
    """
    values = dict(values)
    name = values.pop("compatibility", "default")
    need(name in COMPATIBILITY, unknown("compatibility", name, COMPATIBILITY))
    if name == "default":
        return values
    preset = merge(head_class(head or "").published, {"data": {"sampler": sampler}} if sampler else {})
    if not preset:
        raise ConfigError(f"compatibility: published says nothing about the {head} head on this backbone; leave it out")
    preset = preset | {"model": {"head": {"compatibility": name}}, "data": dict(preset.get("data", {}))}
    if not (values.get("data") or {}).get("sampler"):
        preset["data"].pop("sampler", None)  # alone it would replace the checkpoint's sampler
    return merge(preset, values)
