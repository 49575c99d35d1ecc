"""From a model to a folder and back: what users import, without the room's inner order."""

from videollm.checkpoint.bundle import QUESTION_TOKENIZER, Bundle, check_frames
from videollm.checkpoint.hub import local
from videollm.checkpoint.load import load, load_tokenizer, read_config, read_tokenizer
from videollm.checkpoint.tensors import CheckpointError, check_plain, need

__all__ = ["QUESTION_TOKENIZER", "Bundle", "CheckpointError", "check_frames", "load", "load_tokenizer", "local", "need"]
__all__ += ["check_plain", "read_config", "read_tokenizer"]
