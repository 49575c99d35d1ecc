"""From a model to a folder and back: what users import, without the room's inner order."""

from videollm.checkpoint.bundle import Bundle
from videollm.checkpoint.load import load, read_config
from videollm.checkpoint.tensors import CheckpointError

__all__ = ["Bundle", "CheckpointError", "load", "read_config"]
