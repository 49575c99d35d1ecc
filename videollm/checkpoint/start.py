"""What a model put together from parts starts from: weights of the tower, the connector and the head, vectors of words,
the mean of features, each from its file. Knows the parts, not the config tree.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from videollm.checkpoint.hub import local
from videollm.common.config import ConfigError, need
from videollm.model.connectors import LinearConnector
from videollm.model.videollm import VideoLLM

CONNECTOR_FILE = "connector.safetensors"  # beside a tower's weights
RESIDUAL = (("self_attn", "o_proj"), ("mlp", "down_proj"))


def scale_residuals(model: VideoLLM) -> None:
    """Divide the start of the projections that write into the residual stream by sqrt(2 x layers), as GPT-2 does.

    Else what the first layers add drowns the words themselves, and a tiny model is slow to read its question.
    """
    layers = getattr(model.decoder, "layers", [None])
    for layer in layers:
        parts = [getattr(getattr(layer, part, None), name, None) for part, name in RESIDUAL]
        need(all(parts), f"model.scale_residuals: not for the layers of a {type(model.decoder).__name__}; leave it out")
        for projection in parts:
            projection.weight.data *= (2 * len(layers)) ** -0.5


def read_start(path: str, key: str) -> dict[str, Tensor]:
    """The tensors that a new model starts from; ConfigError naming ``key`` where there is no such file."""
    need(Path(path).is_file(), f"{key}: no file {path}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{key}: {path} cannot be read as safetensors ({error}); give a file of that kind") from None


def load_tower(model: VideoLLM, folder: str) -> None:
    """Copy a tower's weights from ``folder/model.safetensors``, and those of the connector that it was made with from
    ``connector.safetensors``, if that is there; ConfigError if they do not fit."""
    found = local(folder, key="model.vision_weights")
    load_start(model.vision_tower, str(found / "model.safetensors"), "model.vision_weights")
    if (found / CONNECTOR_FILE).is_file():
        load_start(model.connector, str(found / CONNECTOR_FILE), "model.vision_weights")


def load_start(part: nn.Module, path: str, key: str) -> None:
    """Copy all of a part's weights from a file; ConfigError naming ``key`` if they do not fit."""
    given, own = read_start(path, key), part.state_dict()
    lacks = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
    need(not lacks, f"{key}: {path} lacks {', '.join(lacks[:5])}, or has them in another shape")
    part.load_state_dict(given, strict=False)


def center_features(model: VideoLLM, path: str) -> None:
    """Start the linear connector's bias so that the mean feature in ``path`` becomes zero."""
    connector = model.connector
    if not isinstance(connector, LinearConnector):
        raise ConfigError("model.feature_mean: only the linear connector starts from it; leave it out")
    mean = read_start(path, "model.feature_mean").get("mean")
    if mean is None or mean.shape != connector.weight.shape[1:]:
        raise ConfigError(f"model.feature_mean: {path} holds no `mean` of width {connector.weight.shape[1]}")
    connector.bias.data = -connector.weight.data @ mean


@torch.no_grad()
def align_words(
    weight: Tensor, tokenizer: PreTrainedTokenizerBase, attributes: dict[str, Tensor], norm: float = 4.0
) -> None:
    """Write the vectors of ``attributes`` (word -> [Dv], Dv <= D) into the words' rows of ``weight`` [V, D], in place.

    Vectors are centred within what was given and scaled to length ``norm``. A word counts with and without a blank;
    one that the tokenizer does not know is left out. Raises ConfigError for vectors of which these cannot be made.
    """
    widest, shapes = weight.shape[1], {vector.shape for vector in attributes.values()}
    flat = len(attributes) > 1 and len(shapes) == 1 and all(len(s) == 1 and 0 < s[0] <= widest for s in shapes)
    need(flat, f"model.word_vectors: has to hold several words, each as one vector, all as wide, at most {widest}")
    mean = torch.stack(list(attributes.values())).mean(0)
    for word, vector in attributes.items():
        row = torch.zeros(weight.shape[1])
        row[: len(vector)] = vector - mean
        for piece in (word, "\u2581" + word):
            index = tokenizer.convert_tokens_to_ids(piece)
            if index not in (None, tokenizer.unk_token_id):
                weight[index] = (norm * row / row.norm()).to(weight.dtype)
