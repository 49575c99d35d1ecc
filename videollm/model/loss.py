"""Cross-entropy of the language model over supervised positions only.

Logits are made for those positions alone and in chunks that are recomputed in the backward pass, so that neither the
unsupervised positions nor the whole vocabulary at once ever cost memory.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

CHUNK = 512  # positions whose logits exist at a time


def logits_of(language_model: nn.Module, states: Tensor) -> Tensor:
    """Float logits [M, V] of final-norm states [M, D], with Gemma2's soft cap where the config asks for one."""
    logits = language_model.get_output_embeddings()(states)
    cap = getattr(language_model.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def token_cross_entropy(
    language_model: nn.Module, states: Tensor, index: Tensor, labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy of each supervised token, [M] float32; for M = 0 empty, but on the graph.

    Args:
        states: final-norm states of all places, [B * L, D].
        index: places that predict a supervised token, [M].
        labels: the tokens, [M].
        temperature: divides the logits.
    """

    def chunk(picked: Tensor, target: Tensor) -> Tensor:
        scores = logits_of(language_model, picked).float()
        scores = scores if temperature == 1.0 else scores / temperature  # no copy of them where none is needed
        return cross_entropy(scores, target, reduction="none")

    if index.shape[0] == 0:
        return 0.0 * logits_of(language_model, states[:1]).float().sum().expand(0)
    picked = states[index]
    # Under ZeRO-3 all ranks have to call the output layer equally often, whatever the number of their labels.
    if index.shape[0] <= CHUNK or is_deepspeed_zero3_enabled():
        return chunk(picked, labels)
    pieces = zip(picked.split(CHUNK), labels.split(CHUNK), strict=True)
    return torch.cat([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces])


def supervised_cross_entropy(
    language_model: nn.Module, states: Tensor, index: Tensor, labels: Tensor, weight: Tensor
) -> Tensor:
    """Weighted sum of ``token_cross_entropy``; ``weight`` [M] of each token."""
    return (token_cross_entropy(language_model, states, index, labels) * weight).sum()
