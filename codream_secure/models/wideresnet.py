"""Wide residual networks (Zagoruyko and Komodakis 2016): norm and ReLU before a convolution."""

from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.models.layers import Norm, PadTo, conv3x3, norm_layer

MIN_SIZE: Final = 8
_STAGES: Final = 3


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice, added to a shortcut.

    Where the number of channels changes, the shortcut is a 1 x 1 convolution of the input after
    its first norm and ReLU; else it is the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm_layer(norm, inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm2 = norm_layer(norm, outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        active = F.relu(self.norm1(images))
        hidden: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return hidden + (images if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A stem, three stages of blocks, a norm, a mean over the image, and a linear layer.

    The stem has `width` channels, the stages `widening` times `width`, 2 `width` and 4 `width`.
    Images of less than 8 x 8 are padded.

    Args:
        spec: Shape of an image, and the number of classes.
        width: Channels of the stem, 16 in the paper.
        norm: Kind of the norms.
        depth: Layers, 6 n + 4 for n blocks in a stage.
        widening: The paper's k.
    """

    def __init__(
        self, spec: InputSpec, width: int, norm: Norm, *, depth: int, widening: int
    ) -> None:
        super().__init__()
        self.pad = PadTo(MIN_SIZE)
        self.stem = conv3x3(spec.channels, width)
        layers: list[nn.Module] = []
        channels = width
        for stage in range(_STAGES):
            outputs = widening * width << stage
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActivationBlock(channels, outputs, stride, norm))
                channels = outputs
        self.stages = nn.Sequential(*layers)
        self.norm = norm_layer(norm, channels)
        self.head = nn.Linear(channels, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled images, N x C x H x W, to logits, N x classes."""
        features = F.relu(self.norm(self.stages(self.stem(self.pad(images)))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
