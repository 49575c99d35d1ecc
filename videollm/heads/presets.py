"""``compatibility: published``: what the released systems do differently, as one preset under a config's own values.

In: the values of a config, and the head's name. Out: the values with every flag of the preset in its place, unless the
config says otherwise; the name itself is gone, so that what is written beside a model shows the flags. What the flags
are, each head says (``TemporalHead.published``); it knows none of them.
"""

from videollm.common.config import ConfigError, merge
from videollm.heads.interface import head_class


def lay_preset(values: dict, head: str | None) -> dict:
    """``values`` without ``compatibility``, laid over the preset that it names for ``head``.

    Raises:
        ConfigError: another name than ``default`` and ``published``, or a head without a published system.
    """
    values = dict(values)
    name = values.pop("compatibility", "default")
    if name not in ("default", "published"):
        raise ConfigError(f"compatibility: {name!r} is not one of 'default', 'published'")
    if name == "default":
        return values
    preset = head_class(head or "").published
    if not preset:
        raise ConfigError(f"compatibility: published says nothing about the {head} head; leave it out")
    preset = merge(preset, {})
    if not (values.get("data") or {}).get("sampler"):
        preset.get("data", {}).pop("sampler", None)  # alone it would replace the checkpoint's sampler
    return merge(preset, values)
