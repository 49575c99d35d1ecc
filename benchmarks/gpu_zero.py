"""A training step through DeepSpeed's engine on one rank, as the Trainer sets it up. Needs DeepSpeed."""

from typing import Any

import deepspeed
import torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from videollm.batches.batch import Batch
from videollm.model.videollm import VideoLLM
from videollm.training.optimizer import parameter_groups
from videollm.training.preflight import FROM_THE_RUN, prepare_process, read_deepspeed
from videollm.training.settings import Settings

GIB = 2**30


def zero_step(run: Any, settings: Settings, model: VideoLLM, batch: Batch) -> dict[str, float]:
    """Milliseconds of a step, and the most memory with the optimizer's states; ``run`` is a ``gpu_parts.Run``."""
    prepare_process(settings)
    values = read_deepspeed(settings.train.deepspeed, "bf16")
    values |= dict.fromkeys(FROM_THE_RUN, 1) | {"gradient_clipping": settings.train.clip, "bf16": {"enabled": True}}
    kept = HfDeepSpeedConfig(values)  # the model asks whether it runs under ZeRO-3 as long as this lives
    engine = None
    try:
        optimizer = torch.optim.AdamW(parameter_groups(model, settings), fused=run.device == "cuda")
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=values)

        def step() -> None:
            engine.backward(engine(batch).loss)
            engine.step()

        step()
        found = {}
        if run.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found["ms a step"] = 1000 * run.timed(step)
        if run.device == "cuda":
            found["peak GiB"] = torch.cuda.max_memory_allocated() / GIB
        return found
    finally:
        del kept
        if engine is not None:  # the process group stays: the next engine takes it
            engine.destroy()
