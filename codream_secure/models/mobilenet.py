"""MobileNetV2 for small images (Sandler et al. 2018): three of its five strides are dropped."""

from typing import Final, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.models.layers import Norm, PadTo, conv3x3, norm_layer

WIDTH: Final = 32
MIN_SIZE: Final = 16
_LAST: Final = 1280


class _Stage(NamedTuple):
    """A row of the paper's table 2; strides are those usual for 32 x 32 images."""

    expansion: int
    channels: int
    blocks: int
    stride: int


_STAGES: Final = (
    _Stage(1, 16, 1, 1),
    _Stage(6, 24, 2, 1),
    _Stage(6, 32, 3, 2),
    _Stage(6, 64, 4, 2),
    _Stage(6, 96, 3, 1),
    _Stage(6, 160, 3, 2),
    _Stage(6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Widen with 1 x 1, filter each channel with 3 x 3, narrow with 1 x 1 without activation.

    Where neither channels nor size change, the input is added.
    """

    def __init__(
        self, inputs: int, outputs: int, *, expansion: int, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        hidden = expansion * inputs
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), norm_layer(norm, hidden)]
            layers.append(nn.ReLU6())
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False),
            norm_layer(norm, hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            norm_layer(norm, outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self._adds_input = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        hidden: Tensor = self.layers(images)
        return images + hidden if self._adds_input else hidden


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residual blocks, a 1 x 1 convolution, a mean, and a linear layer.

    `width` is the channels of the stem, 32 in the paper; all others follow in proportion,
    rounded down. Images of less than 16 x 16 are padded.
    """

    def __init__(self, spec: InputSpec, width: int, norm: Norm) -> None:
        super().__init__()
        self.pad = PadTo(MIN_SIZE)
        self.stem = conv3x3(spec.channels, width)
        self.norm = norm_layer(norm, width)
        layers: list[nn.Module] = []
        channels = width
        for stage in _STAGES:
            outputs = _scaled(stage.channels, width)
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                layers.append(
                    InvertedResidual(
                        channels, outputs, expansion=stage.expansion, stride=stride, norm=norm
                    )
                )
                channels = outputs
        self.stages = nn.Sequential(*layers)
        last = _scaled(_LAST, width)
        self.last = nn.Conv2d(channels, last, 1, bias=False)
        self.last_norm = norm_layer(norm, last)
        self.head = nn.Linear(last, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled images, N x C x H x W, to logits, N x classes."""
        hidden = self.stages(F.relu6(self.norm(self.stem(self.pad(images)))))
        features = F.relu6(self.last_norm(self.last(hidden)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _scaled(channels: int, width: int) -> int:
    return max(1, channels * width // WIDTH)
