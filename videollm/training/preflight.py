"""What cannot work is said before anything starts: DeepSpeed files, combinations of options, what ``resuming`` says.

In: settings, the number of processes, the run's last checkpoint. Out: ConfigError that names the key and the remedy,
and a process environment in which DeepSpeed starts on a CPU without compiling. Builds no model, opens no video.
"""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import torch
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.utils.cpp_extension import get_default_build_root

from videollm.common.config import ConfigError, need
from videollm.common.files import check_writable
from videollm.heads import build_head
from videollm.model.attention import FLASH, check_flash, implementation
from videollm.model.objective import build_objective
from videollm.model.videollm import VideoLLMConfig
from videollm.training.resuming import check_resume, find_checkpoint
from videollm.training.saving import Checkpoint
from videollm.training.settings import Settings

logger = logging.getLogger(__name__)

FROM_THE_RUN = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_clipping": "train.clip",
}
STALE_S = 600.0  # a compilation writes something more often than that


def check_start(settings: Settings) -> Checkpoint | None:
    """Everything that can be known to fail; returns the checkpoint to go on from, None for a new run."""
    check_writable(Path(settings.train.output) / "config.yaml", "train.output")
    zero = read_deepspeed(settings.train.deepspeed, settings.train.precision) if settings.train.deepspeed else None
    if zero is not None:
        check_zero(settings, zero)
        check_compiling(settings.train.deepspeed, zero)
    checkpoint = find_checkpoint(settings)
    if checkpoint is not None:
        check_resume(settings, stage_of(zero), checkpoint)
    return checkpoint


# ---- DeepSpeed ---------------------------------------------------------------------------------------------------


def read_deepspeed(path: str, precision: str) -> dict:
    """A DeepSpeed file; ConfigError if it is missing, not JSON, or decides on what the config decides on."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"train.deepspeed: no file {path}") from None
    except ValueError as error:
        raise ConfigError(f"train.deepspeed: {path} is not JSON ({error})") from None
    for key in ("optimizer", "scheduler"):
        if not isinstance(found, dict) or key in found:
            raise ConfigError(
                f"train.deepspeed: {path} must be a mapping without {key!r}: train.lr, train.parts and "
                "train.schedule decide on that"
            )
    for key, ours in FROM_THE_RUN.items():
        if found.get(key) != "auto":
            raise ConfigError(f'train.deepspeed: {path} must say "{key}": "auto"; {ours} decides on that')
    half = found.get("bf16", {}).get("enabled", False)
    if half != "auto" and half != (precision == "bf16") or found.get("fp16", {}).get("enabled") not in (None, False):
        raise ConfigError(
            f'train.deepspeed: {path} must say "bf16": {{"enabled": "auto"}} and not enable fp16; train.precision '
            f"({precision}) decides on that"
        )
    if stage_of(found) not in range(4):
        raise ConfigError(f'train.deepspeed: {path} must say "zero_optimization": {{"stage": 0, 1, 2 or 3}}')
    return found


def stage_of(zero: dict | None) -> int | None:
    """The ZeRO stage of a DeepSpeed file; None without DeepSpeed."""
    return None if zero is None else zero.get("zero_optimization", {}).get("stage", 0)


def check_zero(settings: Settings, zero: dict) -> None:
    """ConfigError where ZeRO-3 cannot do what the config asks for, which would show only hours later."""
    if stage_of(zero) != 3:
        return
    train = settings.train
    if not zero["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"):
        raise ConfigError(
            f'train.deepspeed: {train.deepspeed} must say "stage3_gather_16bit_weights_on_model_save": true; without '
            "it ZeRO-3 saves no model that can be loaded"
        )
    if train.lora is not None and train.merge_lora:
        raise ConfigError(
            "train.merge_lora: not possible under ZeRO-3; set it to false and merge afterwards "
            "(videollm checkpoint SRC DST), or use ZeRO-2"
        )
    for name in ("time_limit_s", "graphs", "compile_tower"):
        need(
            not train.validate_every or not getattr(settings.generate, name),
            f"generate.{name}: not possible with train.validate_every under ZeRO-3, whose ranks gather weights in the "
            "same modules at the same time; leave it out, or use ZeRO-2",
        )


def check_compiling(path: str, zero: dict) -> None:
    """ConfigError where DeepSpeed would compile its CPU optimizer and cannot, or would wait for ever to do so."""
    offload = zero.get("zero_optimization", {}).get("offload_optimizer") or {}
    if offload.get("device", "none") == "none" or zero.get("zero_force_ds_cpu_optimizer") is False:
        return
    without = f'or add "zero_force_ds_cpu_optimizer": false to {path}, which keeps torch\'s AdamW'
    compiler = os.environ.get("CXX", "g++")
    if not all(map(shutil.which, (compiler, "ninja"))):
        raise ConfigError(
            f"train.deepspeed: cpu_adam would be compiled, but {compiler} or ninja is missing; install them, {without}"
        )
    check_lock("cpu_adam", without)


def check_lock(op: str, without: str) -> None:
    """ConfigError for a lock of torch's extensions that no compilation holds any more."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in (*root.glob(f"{op}/lock"), *root.glob(f"*/{op}/lock")):
        idle = time.time() - max(file.stat().st_mtime for file in lock.parent.iterdir())
        if idle > STALE_S:
            raise ConfigError(
                f"train.deepspeed: {lock} was left by a compilation that was killed (nothing written for {idle:.0f} s),"
                f" and DeepSpeed would wait for it silently; delete it, {without}"
            )
        logger.warning("%s: another process compiles %s; this one waits for it", lock, op)


# ---- the process -------------------------------------------------------------------------------------------------


def prepare_process(settings: Settings) -> None:
    """What has to be set before torch, DeepSpeed or a process group start."""
    gpus = torch.cuda.device_count()
    if not gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns of it, whether it is used or not
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    if gpus > 1 and "RANK" not in os.environ:
        raise ConfigError(
            f"this one process sees {gpus} GPUs: start with scripts/train.sh (or torchrun), which runs a process a "
            "GPU, or choose one with CUDA_VISIBLE_DEVICES"
        )
    if settings.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if not settings.train.deepspeed:
        return
    if "RANK" not in os.environ:  # started as plain python: DeepSpeed would look for MPI
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(get_free_port()))
    if not gpus:
        import deepspeed

        # DeepSpeed would compile a shared-memory communication op with g++ at the first run; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def check_attention(config: VideoLLMConfig, settings: Settings) -> None:
    """ConfigError where ``model.attention`` cannot compute this run; no weights are read."""
    asked = settings.model.attention
    implementation(config.text_config, asked)
    if asked != FLASH:
        return
    with torch.device("meta"):
        injects = build_head(config.head, config.text_config.hidden_size).inject_layer is not None
    needing = {
        "data.pack": settings.data.pack,
        "model.bidirectional_frames": config.bidirectional_frames,
        f"the {config.head['name']} head": injects,
        "train.objective": build_objective(settings.train.objective).rejected is not None,
    }
    check_flash([name for name, needs in needing.items() if needs], settings.train.precision)
