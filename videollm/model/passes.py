"""Small tools around one pass of the language model: keeping wanted layers' states, placing embeddings, the output."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from videollm.common.config import ConfigError


@dataclass
class VideoLLMOutput(ModelOutput):
    """``loss`` is what to minimise; ``terms`` each term and logged number, divided by its count, detached."""

    loss: Tensor | None = None
    terms: dict[str, Tensor] | None = None


class LayerTap:
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
        for hook in self.hooks:
            hook.remove()

    def finish(self, embeds: Tensor, last: Tensor) -> dict[int, Tensor]:
        """All wanted states, once the pass is over."""
        ends = {0: embeds, -1: last}
        return self.states | {layer: ends[layer] for layer in self.wanted & {0, -1}}


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
        raise ConfigError(f"model.head: layer {layer} is not below the last of the language model's {count} layers")
    return index


def scatter(embeds: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """[B, L, D] with the flat places ``index`` [N] replaced by ``new`` [N, D], out of place."""
    return embeds.flatten(0, 1).index_copy(0, index, new).view_as(embeds)
