"""Small tools around one pass of the language model: keeping wanted layers' states, placing embeddings, the output."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import ModelOutput

from videollm.common.config import ConfigError


@dataclass
class VideoLLMOutput(ModelOutput):
    """``loss`` is what to minimise; ``terms`` each term and logged number, divided by its count, detached."""

    loss: Tensor | None = None
    terms: dict[str, Tensor] | None = None


class Hooked:
    """While it lasts, its ``hooks`` are in place."""

    hooks: list

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error) -> None:
        for hook in self.hooks:
            hook.remove()


class LayerTap(Hooked):
    """Keeps the hidden states of the wanted decoder layers of one forward pass, and of no others.

    Layers count as in ``FrameBatch.states``: 0 the input embeddings, k the output of layer k, -1 after the final norm.
    Where -1 is not wanted, the pass ends with the deepest wanted layer.
    """

    def __init__(self, decoder: nn.Module, wanted: set[int]):
        self.states: dict[int, Tensor] = {}
        self.wanted = wanted
        self.decoder, self.layers, self.depth = decoder, decoder.layers, 1
        self.hooks = []
        for layer in wanted - {0, -1}:
            index = layer_index(decoder, layer)
            self.depth = max(self.depth, index)
            self.hooks.append(decoder.layers[index - 1].register_forward_hook(self._keep(layer)))

    def _keep(self, layer: int):
        def hook(_module, _inputs, output):
            self.states[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def __enter__(self) -> "LayerTap":
        if -1 not in self.wanted:
            self.decoder.layers = self.layers[: self.depth]
        return self

    def __exit__(self, *_error) -> None:
        self.decoder.layers = self.layers
        super().__exit__()

    def finish(self, embeds: Tensor, last: Tensor) -> dict[int, Tensor]:
        """All wanted states, once the pass is over."""
        ends = {0: embeds, -1: last}
        return self.states | {layer: ends[layer] for layer in self.wanted & {0, -1}}


class DeepStack(Hooked):
    """Adds what a tower's middle layers saw to the visual tokens' states behind the language model's first layers.

    ``maps`` [T, d, D] go to the flat places ``index`` [T] behind layers 1 to d, in a pass over ``columns`` of rows that
    are ``length`` long. Whoever reads a layer's states, a head among them, finds them added: its output is what the
    next layer receives. Layers that a pass runs without its prefix, where all visual tokens stand, add nothing.
    """

    def __init__(self, decoder: nn.Module, maps: Tensor | None, index: Tensor, length: int, columns: int):
        self.hooks = []
        if maps is None:
            return
        self.columns = columns
        self.index = index // length * columns + index % length
        for layer, new in zip(decoder.layers, maps[: len(index)].unbind(1), strict=False):
            self.hooks.append(layer.register_forward_hook(self._add(new), prepend=True))

    def _add(self, new: Tensor):
        def hook(_module, _inputs, states: Tensor) -> Tensor:
            if states.shape[1] != self.columns:
                return states
            return states.flatten(0, 1).index_add(0, self.index, new.to(states.dtype)).view_as(states)

        return hook


class PrefixCache(DynamicCache):
    """Keys and values of a prefix: kept as they come in the first pass, in front of the text's in the second."""

    def __init__(self):
        super().__init__()
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> [B, heads, P, d] each

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args, **_kwargs):
        """What the layer's queries look at."""
        new = (key_states, value_states)
        if layer_idx in self.kept:
            return tuple(torch.cat(pair, -2) for pair in zip(self.kept[layer_idx], new, strict=True))
        self.kept[layer_idx] = new
        return new


class Joined(Hooked):
    """A pass over whole rows whose prefixes have been through the first ``depth`` layers already.

    Those layers get the columns behind the prefix alone, and the prefix's keys and values from ``cache``; the layer
    behind them gets both together, so that no layer runs twice over the same place, and the deep ones run once. The
    decoder is called as for whole rows: masks and positions are cut here. Not under gradient checkpointing, which
    drops a cache.
    """

    def __init__(self, decoder: nn.Module, depth: int, prefix: Tensor, cache: PrefixCache):
        """``prefix`` [B, P, D]: what layer ``depth`` has made of the prefix; ``depth`` is below the last layer."""
        self.prefix, self.start, self.cache = prefix, prefix.shape[1], cache
        first, *shallow = decoder.layers[:depth]
        hooks = [(first, self._first), *((layer, self._text) for layer in shallow), (decoder.layers[depth], self._join)]
        self.hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer, hook in hooks]

    def _first(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return self._text(module, (args[0][:, self.start :], *args[1:]), kwargs)

    def _text(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask, (cos, sin) = kwargs["attention_mask"], kwargs["position_embeddings"]  # [B, 1, L, L], [B, L, d] each
        own = {
            "attention_mask": mask[:, :, self.start :],
            "position_ids": None if (places := kwargs["position_ids"]) is None else places[:, self.start :],
            "position_embeddings": (cos[:, self.start :], sin[:, self.start :]),
            "past_key_values": self.cache,
        }
        return args, kwargs | own

    def _join(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return (torch.cat([self.prefix, args[0]], 1), *args[1:]), kwargs


def layer_index(decoder: nn.Module, layer: int) -> int:
    """The layer that ``layer`` (neither 0 nor -1) means, from 1; ConfigError unless it is below the last.

    The states of the last one are those after the final norm, -1.
    """
    layers = getattr(decoder, "layers", None)
    if layers is None:
        what = f"{type(decoder).__name__} does not list its layers, whose states this head needs"
        raise ConfigError(f"model.language.model_type: {what}; choose another, such as qwen2, llama or phi3")
    count = len(layers)
    index = layer if layer > 0 else count + 1 + layer
    if not 0 < index < count:
        wrong = f"layer {layer} is not below the last of the language model's {count} layers"
        remedy = "set the head's query_layer and inject_layer lower, or choose another head or a deeper language model"
        raise ConfigError(f"model.head: {wrong}; {remedy}")
    return index


def behind(decoder: nn.Module, layer: int, other: int) -> bool:
    """Whether ``layer`` comes later than ``other`` (neither 0 nor -1), both counted as in ``LayerTap``."""
    return layer == -1 or (layer != 0 and layer_index(decoder, layer) > layer_index(decoder, other))


def scatter(embeds: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """[B, L, D] with the flat places ``index`` [N] replaced by ``new`` [N, D], out of place."""
    return embeds.flatten(0, 1).index_copy(0, index, new).view_as(embeds)
