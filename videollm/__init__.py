"""The core of temporally grounded video-language models: it names no head and no benchmark (see README.md).

``from videollm import load`` is what a Python program needs to ask a model (docs/python.md). Nothing heavy is imported
before it is called.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videollm.inference.session import Session

__all__ = ["load"]


def load(model: str, *, device: str | None = None, precision: str | None = None, **options: dict) -> "Session":
    """A model to ask: ``load("runs/x/final").ask("clip.mp4", "When ...?")``.

    Args:
        model: checkpoint folder, or its name on the hub (``owner/model``, ``owner/model@revision``).
        device: such as ``cpu`` or ``cuda:1``; by default a GPU where there is one.
        precision: ``fp32`` or ``bf16``; by default the checkpoint's own on a GPU, fp32 on a CPU.
        options: ``sampler``, ``preprocess``, ``generate``, ``head`` (mappings) and ``compatibility`` by the names of
            the command line, such as ``sampler={"fps": 2}``.

    Raises:
        ConfigError: an unknown option or precision, or a device that is not there.
        CheckpointError: no checkpoint of this project, or an incomplete one.
    """
    from videollm.inference.session import open_session

    return open_session(model, options, device, precision)
