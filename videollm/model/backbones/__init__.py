"""Backbones as they are released, a file a family, of transformers' own classes; importing it registers them all.

A family is a tower (``TOWERS``), which carries a ``Patching`` if it takes frames of any size, the connector behind it
(``CONNECTORS``), and where transformers has only the bare text model, that model with its output layer. What stands
elsewhere already, such as the tower ``internvl``, is not made again. Beside them a file says how the released
checkpoint is to be read: ``NAMES``, prefixes of its tensors and ours, and ``parts``, its config as ``model`` settings;
``SAMPLER``, if it is there, has the values of ``data.sampler`` that ``compatibility: published`` sets.
docs/backbones.md tells how to add one.
"""

from videollm.model.backbones import internvl, qwen2_5_vl, qwen3_vl, smolvlm

FAMILIES = {
    "internvl": internvl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
}  # by the ``model_type`` of the released config


def published_sampler(vision: dict) -> dict:
    """What ``compatibility: published`` sets of ``data.sampler`` for a model with the tower ``vision``."""
    kind = vision.get("type")
    return getattr(FAMILIES.get(kind) if isinstance(kind, str) else None, "SAMPLER", {})
