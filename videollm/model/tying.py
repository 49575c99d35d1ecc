"""Token embedding and output layer as one matrix: whether a model has it so, and under which name files hold it.

In: a language model's config, and tensors by name as a state dict or a checkpoint's files have them. Out: whether the
two are tied, and the names that are stored. It builds no model and reads no file. The rule stands in ``tied``.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from videollm.common.config import ConfigError

EMBEDDINGS, OUTPUT = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"

logger = logging.getLogger(__name__)


def tied(text: PretrainedConfig) -> bool:
    """Whether the language model with the config ``text`` has one matrix for token embedding and output layer.

    The rule, for every part of the code:

    - ``tie_word_embeddings`` of that config decides, when the model is built, and nothing else does. New tokens,
      training and adapters on other layers keep a model tied or untied.
    - A tied model has one parameter. It belongs to the part ``embeddings``; what ``train.parts`` says of ``lm_head``
      has to be true of it. LoRA on ``lm_head`` is refused: it would need a matrix of its own.
    - Files of a tied model hold ``EMBEDDINGS`` alone (``stored``). A reader fills the other name. Where files hold both
      alike, as older DeepSpeed runs wrote them, the second is left unread: beside trained embeddings it is stale.
    - Files of an untied model hold both; a file that lacks one is refused.
    - A matrix cannot be two. Where files hold two that differ, the config is corrected to untied (``settle``).
    - Three steps untie: ``model.language.tie_word_embeddings=false`` for a new model (beside ``language_weights`` the
      output layer starts as a copy), merging an adapter on the token embedding alone (``untie``), and the official
      layout of DisTime, which has no tied form. No step ties what is untied; asking for it is refused unless both are
      alike.
    """
    return bool(getattr(text, "tie_word_embeddings", False))


def stored(names: Iterable[str], text: PretrainedConfig) -> list[str]:
    """Of the tensors ``names`` of a model with the language config ``text``, those that files hold."""
    return [name for name in names if not (name == OUTPUT and tied(text))]


def filled(state: Mapping[str, Tensor], text: PretrainedConfig) -> Mapping[str, Tensor]:
    """What files hold (``stored``), under all names of the model again."""
    if not tied(text) or EMBEDDINGS not in state or OUTPUT in state:
        return state
    return {**state, OUTPUT: state[EMBEDDINGS]}


def settle(text: PretrainedConfig, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Make ``text`` say untied if ``state``, of the folder ``where``, holds two matrices that differ; it is logged."""
    if tied(text) and differ(state):
        text.tie_word_embeddings = False
        logger.warning("%s: its config ties lm_head to embed_tokens, its weights differ; taken as untied", where)


def differ(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` holds a token embedding and an output layer that are not alike."""
    return EMBEDDINGS in state and OUTPUT in state and not torch.equal(state[EMBEDDINGS], state[OUTPUT])


def untie(model: PreTrainedModel) -> None:
    """Give the output layer of a VideoLLM a copy of the matrix for itself."""
    output = model.get_output_embeddings()
    output.weight = nn.Parameter(output.weight.detach().clone(), output.weight.requires_grad)
    for config in (model.config.text_config, model.language_model.config):
        config.tie_word_embeddings = False


def check_tie(base: PreTrainedModel, text: PretrainedConfig, where: str) -> None:
    """ConfigError where ``text`` has one matrix for token embedding and output layer, and ``base`` two that differ."""
    first, second = (part.weight for part in (base.get_input_embeddings(), base.get_output_embeddings()))
    if tied(text) and not torch.equal(first, second):
        raise ConfigError(
            f"model.language_weights: {where} has a token embedding and an output layer that differ, but its config or "
            "model.language ties them; set model.language.tie_word_embeddings=false"
        )
