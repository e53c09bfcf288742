"""Residual networks for small images (He et al. 2016, in the CIFAR shape: a 3 x 3 stem)."""

from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.models.layers import Norm, PadTo, conv3x3, norm_layer

# Height and width of the last maps at least; a batch norm over 1 x 1 maps knows too little.
_MIN_LAST: Final = 2


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Module:
    """Make a 1 x 1 convolution with a norm where the shape changes, else the identity."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm_layer(norm, outputs)
    )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with norms, added to a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, channels, stride)
        self.norm1 = norm_layer(norm, channels)
        self.conv2 = conv3x3(channels, channels)
        self.norm2 = norm_layer(norm, channels)
        self.shortcut = _shortcut(inputs, channels, stride, norm)

    def forward(self, images: Tensor) -> Tensor:
        """N x inputs x H x W to N x channels x H/stride x W/stride."""
        hidden = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(images))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two 1 x 1 ones, with norms, added to a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outputs = self.expansion * channels
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.norm1 = norm_layer(norm, channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.norm2 = norm_layer(norm, channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.norm3 = norm_layer(norm, outputs)
        self.shortcut = _shortcut(inputs, outputs, stride, norm)

    def forward(self, images: Tensor) -> Tensor:
        """N x inputs x H x W to N x 4 channels x H/stride x W/stride."""
        hidden = F.relu(self.norm1(self.conv1(images)))
        hidden = F.relu(self.norm2(self.conv2(hidden)))
        return F.relu(self.norm3(self.conv3(hidden)) + self.shortcut(images))


class ResNet(nn.Module):
    """A stem, stages of blocks, a mean over the image, and a linear layer.

    The first stage has `width` channels; each later one twice those of the one before, at half
    the height and width. Networks of four stages pad images of less than 16 x 16; of three
    stages, images of less than 8 x 8.

    Args:
        spec: Shape of an image, and the number of classes.
        width: Channels of the stem and of the first stage's 3 x 3 convolutions.
        norm: Kind of the norms.
        blocks: Blocks in each stage.
        block: Kind of the blocks.
    """

    def __init__(
        self,
        spec: InputSpec,
        width: int,
        norm: Norm,
        *,
        blocks: tuple[int, ...],
        block: type[BasicBlock | Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        self.pad = PadTo(_MIN_LAST << (len(blocks) - 1))
        self.stem = conv3x3(spec.channels, width)
        self.norm = norm_layer(norm, width)
        layers: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            channels = width << stage
            for position in range(count):
                stride = 2 if stage > 0 and position == 0 else 1
                layers.append(block(inputs, channels, stride, norm))
                inputs = block.expansion * channels
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled images, N x C x H x W, to logits, N x classes."""
        features: Tensor = self.stages(F.relu(self.norm(self.stem(self.pad(images)))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
