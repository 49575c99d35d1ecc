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


def supervised_cross_entropy(
    language_model: nn.Module, states: Tensor, index: Tensor, labels: Tensor, weight: Tensor
) -> Tensor:
    """Weighted sum of token cross-entropies.

    Args:
        states: final-norm states of all places, [B * L, D].
        index: places that predict a supervised token, [M]; M may be 0 (then a zero on the graph).
        labels: the tokens, [M].
        weight: of each, [M].
    """

    def chunk(picked: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        losses = cross_entropy(logits_of(language_model, picked).float(), target, reduction="none")
        return (losses * weight).sum()

    if index.shape[0] == 0:
        return 0.0 * logits_of(language_model, states[:1]).float().sum()
    picked = states[index]
    pieces = zip(picked.split(CHUNK), labels.split(CHUNK), weight.split(CHUNK), strict=True)
    # Under ZeRO-3 all ranks have to call the output layer equally often, whatever the number of their labels.
    if index.shape[0] <= CHUNK or is_deepspeed_zero3_enabled():
        return chunk(picked, labels, weight)
    return torch.stack([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces]).sum()
