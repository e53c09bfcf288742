"""Residual networks for small images (He et al. 2016, in the CIFAR shape: a 3 x 3 stem)."""

from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.models.layers import Norm, conv3x3, norm_layer


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with norms, added to a shortcut.

    The shortcut is a 1 x 1 convolution with a norm where the shape changes, else the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm1 = norm_layer(norm, outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = norm_layer(norm, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                norm_layer(norm, outputs),
            )

    def forward(self, images: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        hidden = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(images))


class ResNet(nn.Module):
    """A stem, stages of basic blocks, a mean over the image, and a linear layer.

    The first stage has `width` channels; each later one twice those of the one before, at half
    the height and width. It takes images of any size.
    """

    def __init__(self, spec: InputSpec, blocks: tuple[int, ...], width: int, norm: Norm) -> None:
        super().__init__()
        self.stem = conv3x3(spec.channels, width)
        self.norm = norm_layer(norm, width)
        layers: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            outputs = width << stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, outputs, stride, norm))
                channels = outputs
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(channels, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled images, N x C x H x W, to logits, N x classes."""
        features: Tensor = self.stages(F.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def resnet8(spec: InputSpec, width: int, norm: Norm) -> ResNet:
    """Three stages of one block: 19,810 parameters for 1 channel, 10 classes and width 8."""
    return ResNet(spec, (1, 1, 1), width, norm)


def resnet18(spec: InputSpec, width: int, norm: Norm) -> ResNet:
    """Four stages of two blocks: 11,173,962 parameters for 3 channels, 10 classes, width 64."""
    return ResNet(spec, (2, 2, 2, 2), width, norm)
