"""A frozen second model that a trained one is held against; it must read what that one reads.

In: the folder of a checkpoint, and the bundle that is trained. Out: the model, without gradients, or a ConfigError that
says in what the two differ. Knows no objective.
"""

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from videollm.checkpoint.bundle import Bundle
from videollm.checkpoint.load import load
from videollm.common.config import ConfigError
from videollm.model.videollm import VideoLLM

MUST_AGREE = {  # what a batch is made of
    "head": lambda bundle: (bundle.config.head["name"], bundle.model.head.inject_layer),
    "vision": lambda bundle: bundle.config.vision,
    "connector": lambda bundle: bundle.config.connector,
    "tokens": lambda bundle: (bundle.config.token_ids, bundle.tokenizer.get_vocab()),
}


def load_reference(folder: str, bundle: Bundle, attention: str, where: str, features: bool) -> VideoLLM:
    """The model in ``folder``, frozen.

    Args:
        bundle: what is trained.
        attention: as of ``load``.
        where: the key that names the folder, for messages.
        features: both read features that the trained model's tower has made.
    """
    if is_deepspeed_zero3_enabled():
        raise ConfigError(f"{where}: not possible under ZeRO-3, which would split the frozen model; use ZeRO-2")
    reference = load(folder, attention)
    compared = [(what, of(reference) == of(bundle)) for what, of in MUST_AGREE.items()]
    if features:
        towers = (b.model.vision_tower.state_dict() for b in (reference, bundle))
        compared.append(("weights of the vision tower", all(map(torch.equal, *(t.values() for t in towers)))))
    other = [what for what, same in compared if not same]
    if other:
        raise ConfigError(
            f"{where}: {folder} differs from the trained model in {', '.join(other)}; give a model of the same kind"
        )
    return reference.model.requires_grad_(False)


def digest(model: VideoLLM) -> int:
    """A number that tells the weights of a model from others', whatever was computed with them."""
    return sum(int(p.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64)) for p in model.parameters())
