"""Towers that take frames of any size, a file a family, each transformers' own class; importing it registers them all.

A family is a tower (``TOWERS``) that carries a ``Patching``, the connector behind it (``CONNECTORS``), and where
transformers has only the bare text model, that model with its output layer. Beside them a file says how the released
checkpoint is to be read: ``NAMES``, prefixes of its tensors and ours, and ``parts``, its config as ``model`` settings.
docs/backbones.md tells how to add one.
"""

from videollm.model.backbones import internvl, qwen2_5_vl, qwen3_vl

FAMILIES = {
    "internvl": internvl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
}  # by the ``model_type`` of the released config

__all__ = ["FAMILIES"]
