"""A language model's attention and norms: which implementation computes them, which layers see a window only.

In: the language model's config and the implementation that was asked for. Out: the implementation's name, the windows
of its kinds of layers, or a ConfigError that names the remedy, also for heads and contexts that do not fit; and torch's
norms in place of those that compute the same. Knows no batch; masks are made in ``videollm.py``. What decides between
implementations stands here.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import rms_norm
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import is_flash_attn_2_available

from videollm.common.config import ConfigError, need

FLASH = "flash_attention_2"
KEY = "model.attention"
SDPA = "sdpa"
MASKLESS = "sdpa_maskless"  # sdpa under a name for which transformers makes no masks
FULL, SLIDING = "full_attention", "sliding_attention"  # as transformers' ``layer_types`` calls them

AttentionInterface.register(MASKLESS, ALL_ATTENTION_FUNCTIONS[SDPA])


def implementation(text: PretrainedConfig, asked: str) -> str:
    """The implementation by which transformers computes the language model ``text`` where ``asked`` was named.

    Raises:
        ConfigError: the language model has no such implementation.
    """
    if getattr(text, "attn_logit_softcapping", None):  # Gemma2's; sdpa would leave it out without a word
        need(asked != FLASH, f"{KEY}: {text.model_type} caps its attention, which {FLASH} is not asked to; set sdpa")
        return "eager"
    cls = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    lacks = {"sdpa": "_supports_sdpa", FLASH: "_supports_flash_attn"}.get(asked)
    if cls is not None and lacks and not getattr(cls, lacks):
        raise ConfigError(f"{KEY}: {text.model_type} has no {asked}; set eager")
    return asked


def windows(text: PretrainedConfig) -> dict[str, int | None]:
    """For every kind of layer, how many tokens a token sees, itself among them; None: all before it.

    Raises:
        ConfigError: a kind of layer that looks at other tokens than attention over all or over a window does.
    """
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or [SLIDING if window else FULL])
    odd = sorted(kinds - {FULL, SLIDING})
    known = f"only {FULL} and {SLIDING} are known here; choose another language model"
    need(not odd, f"model.language: layers of {text.model_type} are {', '.join(odd)}; {known}")
    return {kind: window if kind == SLIDING else None for kind in sorted(kinds)}


def causal_alone(text: PretrainedConfig, needs_mask: bool, reach: Iterable[int | None]) -> bool:
    """Whether a pass in which all see what is before them needs no mask: the implementation is causal by itself.

    ``needs_mask``: some places are seen by none. ``reach``: the windows that are narrower than the pass.
    """
    kind = text._attn_implementation
    return kind == FLASH or (kind == SDPA and not needs_mask and not any(reach))


@contextmanager
def no_mask_made(text: PretrainedConfig) -> Iterator[None]:
    """Passes of sdpa within it have the mask that they are given, or none.

    Without a mask transformers looks whether positions jump, as in packed rows, and waits for the device to see it.
    """
    asked = text._attn_implementation
    try:
        text._attn_implementation = MASKLESS if asked == SDPA else asked
        yield
    finally:
        text._attn_implementation = asked


def check_flash(needing: Sequence[str], precision: str) -> None:
    """ConfigError where flash attention cannot compute a run: one in float32, or one with masks of its own.

    ``needing`` names the settings under which a token does not just see all before it.
    """
    need(not needing, f"{KEY}: {FLASH} is causal and takes no other mask (needed by {', '.join(needing)}); set sdpa")
    need(precision != "fp32", f"{KEY}: {FLASH} needs train.precision=bf16, this run has {precision}; or set sdpa")


def check_installed(attention: str | None, key: str = KEY) -> None:
    """ConfigError where this machine cannot compute the attention that was asked for under ``key``."""
    there = attention != FLASH or is_flash_attn_2_available()
    need(there, f"{key}: {FLASH} needs a GPU and pip install flash-attn; or set {SDPA}")


def check_heads(text: PretrainedConfig) -> None:
    """ConfigError for heads that attention cannot share or turn; transformers would fail in the first step."""
    heads, rope = getattr(text, "num_attention_heads", None), getattr(text, "rope_parameters", None) or {}
    if not isinstance(heads, int):  # layers of another kind
        return
    shared = getattr(text, "num_key_value_heads", None) or heads
    remedy = f"{heads} is no multiple of model.language.num_key_value_heads, {shared}; change one of them"
    need(heads % shared == 0, f"model.language.num_attention_heads: {remedy}")
    theta = rope.get("rope_theta", 1)
    need(theta > 0, f"model.language.rope_parameters.rope_theta: {theta}, but it must be above 0")
    width = text.hidden_size // heads
    turned = int(width * rope.get("partial_rotary_factor", 1))
    if getattr(text, "head_dim", None) is None and rope:  # else transformers has looked at it
        what = f"{text.hidden_size} over model.language.num_attention_heads, {heads}, makes heads of {width}, of which"
        remedy = f"{what} {turned} numbers are turned by their position, in pairs; make that even"
        need(turned > 0 and turned % 2 == 0, f"model.language.hidden_size: {remedy}")


def check_context(text: PretrainedConfig, tokens: int, key: str) -> None:
    """ConfigError where the context ``tokens``, the value of ``key``, is longer than ``text`` has positions.

    That is ``max_position_embeddings``, or more where a factor in ``rope_parameters`` (of all layers, or of each kind)
    stretches them. Files tell the number before that (YaRN of Qwen2, dynamic of InternLM2) or behind it (Llama 3); the
    larger one counts.
    """
    most, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    if most is None:
        return
    kinds = [
        kind for kind in (rope, *rope.values()) if isinstance(kind, dict) and kind.get("factor")
    ]  # of all, or each
    longest = max([most, *(int(k["factor"] * (k.get("original_max_position_embeddings") or most)) for k in kinds)])
    remedy = "lower it, or stretch them with model.language.rope_parameters"
    need(
        tokens <= longest,
        f"{key}: {tokens}, but the language model has {longest} positions (max_position_embeddings); {remedy}",
    )


def one_kernel_norms(model: nn.Module) -> None:
    """Put ``torch.nn.RMSNorm`` in place of every norm of ``model`` that computes the same; weights keep their names.

    A norm of transformers is eight operations, torch's is one kernel where the device has it (CUDA). In bf16 it rounds
    once, after the weight, and not before it too. Norms of another formula stay, such as Gemma's (1 + weight).
    """
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if is_rms_norm(norm):
                # On the meta device: the weight is the one that is there, or will be.
                new = nn.RMSNorm(norm.weight.shape, eps_of(norm), device="meta").train(norm.training)
                new.weight = norm.weight
                setattr(parent, name, new)


def eps_of(norm: nn.Module) -> float | None:
    """What a norm adds to the mean square, under either of the names that transformers has for it."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module computes ``rms_norm``, found by trying its formula; its weight is not touched."""
    sizes = {name: weight.shape for name, weight in module.named_parameters()}
    gated = len(signature(module.forward).parameters) != 1
    if list(sizes) != ["weight"] or len(sizes["weight"]) != 1 or eps_of(module) is None or gated:
        return False
    with torch.no_grad(), torch.device("cpu"):  # also where a model is made that has no memory
        weight = torch.linspace(-1, 2, *sizes["weight"])
        states = torch.stack([weight.flip(0) - 1, eps_of(module) ** 0.5 * weight.cos()])  # the second: as small as eps
        found = functional_call(module, {"weight": weight}, (states,))
        return torch.allclose(found, rms_norm(states, weight.shape, weight, eps_of(module)), rtol=1e-5, atol=0)
