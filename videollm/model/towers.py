"""Vision towers: frames as pixels ``[N, C, S, S]`` go in, patch features ``[N, P, Dv]`` without CLS come out.

Each tower is transformers' own class, so its weights keep their native names on disk; only what is read from it
differs. A tower carries ``config``, ``hidden_size`` (Dv) and ``num_patches`` (P). It knows neither videos nor times
nor the language model; connectors.py turns its features into frame tokens. A further tower registers a function
``fields -> nn.Module`` with ``@TOWERS.register(name=...)``; ``model.vision.type`` finds it (``common/registry.py``).

A tower that takes frames of any size carries a ``patching`` (``videollm.video.patching``) in place of ``num_patches``:
``tower(patches [N, W], grids [G, 2])`` gives features [T, Dv], one row a token; ``backbones/`` has such towers.
"""

import difflib
import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from videollm.common.config import ConfigError, join, need, unusable
from videollm.common.registry import Registry, new_registry, registered
from videollm.model.attention import check_installed
from videollm.video.patching import Patching
from videollm.video.preprocess import Preprocess

TOWERS = new_registry("towers")
WHERE = "model.vision"
SIZES = (  # fields of transformers' configs that count something
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "sliding_window", "vocab_size", "num_channels", "image_size", "patch_size",
    "cross_attention_frequency",
)  # fmt: skip
SHARES = ("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop")
CHUNK = 64  # frames that go through a frozen tower at a time


def build_tower(config: dict) -> nn.Module:
    """A tower with random weights from ``{"type": name, **fields}``; ``fields`` are those of its config class.

    Raises:
        ConfigError: unknown type, or a field that is unknown or of the wrong kind.
    """
    return build_part(TOWERS, config, WHERE)


def encode_frames(
    tower: nn.Module, pixel_values: Tensor, chunk: int, prepare: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Features of a frozen tower, ``chunk`` frames at a time, outside the graph. [N, C, S, S] -> [N, P, Dv].

    ``prepare`` makes a chunk of frames what the tower takes, so that bytes never become floats all together.

    Raises:
        ValueError: ``chunk`` below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; at least one frame has to go through the vision tower at a time")
    if not len(pixel_values):  # a batch of text only; transformers' attention cannot reshape nothing
        return pixel_values.new_zeros(0, tower.num_patches, tower.hidden_size, dtype=next(tower.parameters()).dtype)
    with torch.no_grad():  # not inference_mode: a connector that learns reads these features
        return torch.cat([tower(prepare(frames) if prepare else frames) for frames in pixel_values.split(chunk)])


def encode_patches(
    tower: nn.Module, patches: Tensor, grids: np.ndarray, chunk: int, prepare: Callable[[Tensor], Tensor]
) -> Tensor:
    """``encode_frames`` for frames of any size, ``chunk`` groups at a time. [N, W], [G, 2] on the CPU -> [T, Dv]."""
    parts = np.split(grids, range(chunk, len(grids), chunk))
    sizes = [int(part.prod(1).sum()) for part in parts]
    with torch.no_grad():
        pairs = zip(patches.split(sizes), parts, strict=True)
        return torch.cat([tower(prepare(few), grid) for few, grid in pairs])


def encode_video(tower: nn.Module, frames: Tensor, preprocess: Preprocess, device: torch.device) -> Tensor:
    """A frozen tower's features of a video's frames as the reader gives them: what a store keeps, on the CPU.

    [F, ...] -> [F, P, Dv], or for a tower that takes frames of any size [G, rows, columns, Dv], a row a token.
    """
    patching: Patching | None = getattr(tower, "patching", None)
    if patching is None:
        return encode_frames(tower, frames.to(device), CHUNK, preprocess.on_device).cpu().contiguous()
    patches, grid = patching.group(frames), patching.grid(*frames.shape[1:3])
    prepare = partial(patching.normalised, mean=preprocess.mean, std=preprocess.std)
    grids = np.tile(grid, (len(patches), 1))
    features = encode_patches(tower, patches.flatten(0, 1).to(device), grids, CHUNK, prepare).cpu()
    return features.unflatten(0, (len(patches), *(side // patching.merge for side in grid))).contiguous()


class CompiledTower(nn.Module):
    """A frozen tower through torch.compile; frames are filled up to 1, 2, 4, ..., each of which is compiled once."""

    def __init__(self, tower: nn.Module):
        """ConfigError for a tower whose frames are of any size."""
        super().__init__()
        any_size = "frames of any size are of too many shapes; leave it out for this vision tower"
        need(getattr(tower, "patching", None) is None, f"generate.compile_tower: {any_size}")
        self.tower, self.num_patches, self.hidden_size = tower, tower.num_patches, tower.hidden_size
        self.run = torch.compile(tower, dynamic=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """As the tower's."""
        frames = len(pixel_values)
        more = 2 ** (frames - 1).bit_length() - frames
        return self.run(pad(pixel_values, (0, 0) * 3 + (0, more)))[:frames]


class InternVLTower(InternVLVisionModel):
    """InternViT: the last hidden state (no final norm, as ``use_mean_pooling`` says), CLS dropped."""

    def __init__(self, config: InternVLVisionConfig):
        super().__init__(config)
        self.hidden_size = config.hidden_size
        self.num_patches = some(self.embeddings.patch_embeddings.num_patches)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, C, S, S] -> [N, P, Dv]. Raises ValueError for frames of another size."""
        check_frames(pixel_values, self.config.num_channels, tuple(self.config.image_size))
        return super().forward(pixel_values).last_hidden_state[:, 1:]


class InstructBlipTower(InstructBlipVisionModel):
    """EVA ViT-g: what the last block puts out, before any final norm, CLS dropped.

    The second last layer of the 40-block EVA is the last one of the 39 blocks that the config's default builds.
    """

    def __init__(self, config: InstructBlipVisionConfig):
        super().__init__(config)
        self.post_layernorm = nn.Identity()  # its weights would be dead: never read, yet stored and optimised
        self.hidden_size = config.hidden_size
        self.num_patches = some(self.embeddings.num_patches)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, P, Dv]. Raises ValueError for frames of another size."""
        check_frames(pixel_values, 3, (self.config.image_size,) * 2)
        return super().forward(pixel_values).last_hidden_state[:, 1:]


@strict
class ConvTowerConfig(PreTrainedConfig):
    """Of ``ConvTower``. 6 channels: a frame and its difference to the frame before."""

    model_type = "videollm_conv"

    num_channels: int = 6
    channels: list[int] | tuple[int, ...] = (24, 48, 96)  # of the convolutions
    hidden_size: int = 128
    image_size: int = 64


class ConvTower(PreTrainedModel):
    """A small convolutional vision tower: one feature vector a frame."""

    config_class = ConvTowerConfig
    main_input_name = "pixel_values"
    num_patches = 1

    def __init__(self, config: ConvTowerConfig):
        super().__init__(config)
        sizes = [config.num_channels, *config.channels]
        strides = [4, *[2] * (len(sizes) - 2)]
        layers = []
        for i, (a, b, stride) in enumerate(zip(sizes, sizes[1:], strides, strict=False)):
            kernel, padding = (8, 2) if i == 0 else (3, 1)
            layers += [nn.Conv2d(a, b, kernel, stride, padding, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        side, rest = divmod(config.image_size, 2 ** len(sizes))
        if rest or not side:
            raise ValueError(f"image_size must be a multiple of {2 ** len(sizes)} pixels, not {config.image_size}")
        self.project = nn.Linear(sizes[-1] * (side * side + 1), config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, elementwise_affine=False)
        self.hidden_size = config.hidden_size
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initialisation."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, C, S, S] -> [N, 1, hidden_size]: what is where, and what is there at all; of unit variance."""
        check_frames(pixel_values, self.config.num_channels, (self.config.image_size,) * 2)
        maps = self.layers(pixel_values)  # [N, C', s, s]
        features = torch.cat([maps.flatten(1), maps.amax((2, 3))], 1)
        return self.norm(self.project(features))[:, None]


@TOWERS.register(name="internvl")
def build_internvl(fields: dict) -> nn.Module:
    """InternViT; ``fields`` of ``InternVLVisionConfig`` (``attention_bias: true`` for the released 300M)."""
    return InternVLTower(build_config(InternVLVisionConfig, fields, WHERE))


@TOWERS.register(name="instructblip")
def build_instructblip(fields: dict) -> nn.Module:
    """EVA ViT-g; ``fields`` of ``InstructBlipVisionConfig``."""
    config = build_config(InstructBlipVisionConfig, fields, WHERE)
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise ConfigError(
            f"{WHERE}.image_size and {WHERE}.patch_size: frames here are square; give one number for each"
        )
    return InstructBlipTower(config)


@TOWERS.register(name="conv")
def build_conv(fields: dict) -> nn.Module:
    """The small convolutional tower of the quickstart, one feature a frame; ``fields`` of ``ConvTowerConfig``."""
    return ConvTower(build_config(ConvTowerConfig, fields, WHERE))


def some(patches: int) -> int:
    """The number of patches; ConfigError where it is 0."""
    need(patches, f"{WHERE}.patch_size: no patch fits into the frame; lower it, or raise {WHERE}.image_size")
    return patches


def check_frames(pixel_values: Tensor, channels: int, size: tuple[int, int]) -> None:
    """Raise ValueError unless the frames are [N, channels, *size]: a tower would resample its positions, or crash."""
    expected = (channels, *size)
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
        raise ValueError(
            f"pixel_values have shape {list(pixel_values.shape)}, the tower takes frames of shape {list(expected)}: "
            f"let the frame transform and {WHERE}.image_size agree"
        )


def build_part(registry: Registry, config: dict, where: str, *sizes: int) -> nn.Module:
    """What ``config["type"]`` names in ``registry``, made from the other fields and ``sizes``.

    Raises:
        ConfigError: an unknown type (naming ``where.type``), or fields that no such part can be built from.
    """
    kind = config.get("type")
    make = registered(registry, kind, join(where, "type"))
    try:
        return make({key: value for key, value in config.items() if key != "type"}, *sizes)
    except Exception as error:  # of any kind
        raise unusable(where, f"a part of type {kind}", error) from error


def build_config(cls: type[PreTrainedConfig], fields: dict, where: str) -> PreTrainedConfig:
    """A transformers config from ``fields``; transformers itself would keep a misspelt field and ignore it.

    Raises:
        ConfigError: a field that ``cls`` has not (with the nearest one it has), or a value of the wrong kind.
    """
    known = {*cls().to_dict(), "attn_implementation"}
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {join(where, near[0])}?" if near else f"the fields are those of {cls.__name__}"
            raise ConfigError(f"{join(where, key)}: unknown key; {hint}")
    check_numbers(where, fields)
    check_installed(fields.get("attn_implementation"), join(where, "attn_implementation"))
    try:
        return cls(**fields)
    except StrictDataclassError as error:
        hint = f"known keys: {', '.join(sorted(set(cls().to_dict()) - set(PreTrainedConfig().to_dict())))}"
        field = re.search(r"field '(\w+)'", str(error))
        key = join(where, field[1]) if field else where
        raise ConfigError(f"{key}: {' '.join(str(error).split())}; {hint}") from None


def check_numbers(where: str, fields: dict) -> None:
    """ConfigError for a size below 1 or a share outside [0, 1] among the given ``fields`` of a transformers config.

    Some are refused in words that do not name them, some in the first step, and some never.
    """
    for names, least, most in ((SIZES, 1, math.inf), (SHARES, 0, 1)):
        for key in fields.keys() & set(names):
            values = fields[key] if isinstance(fields[key], list | tuple) else [fields[key]]
            for value in values:
                if isinstance(value, int | float) and not least <= value <= most:
                    wanted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                    raise ConfigError(f"{join(where, key)}: {value}, but it must be {wanted}")
