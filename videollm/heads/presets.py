"""``compatibility: published``: what the released systems do differently, as one preset under a config's own values.

In: the values of a config, and the head's name. Out: the values with every flag of the preset in its place, unless the
config says otherwise. What the flags are, each head lists (``TemporalHead.published``); it knows none of them. Those of
the head itself go by the preset's name, which ``build_head`` spells out.
"""

from videollm.common.config import ConfigError, merge
from videollm.heads.interface import COMPATIBILITY, head_class


def lay_preset(values: dict, head: str | None) -> dict:
    """``values`` without ``compatibility``, laid over the preset that it names for ``head``.

    Raises:
        ConfigError: another name than ``default`` and ``published``, or a head without a published system.
    """
    values = dict(values)
    name = values.pop("compatibility", "default")
    if name not in COMPATIBILITY:
        raise ConfigError(f"compatibility: {name!r} is not one of {', '.join(map(repr, COMPATIBILITY))}")
    if name == "default":
        return values
    preset = head_class(head or "").published
    if not preset:
        raise ConfigError(f"compatibility: published says nothing about the {head} head; leave it out")
    preset = preset | {"model": {"head": {"compatibility": name}}, "data": dict(preset.get("data", {}))}
    if not (values.get("data") or {}).get("sampler"):
        preset["data"].pop("sampler", None)  # alone it would replace the checkpoint's sampler
    return merge(preset, values)
