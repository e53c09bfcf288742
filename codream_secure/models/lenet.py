"""LeNet-5 (LeCun et al. 1998), with ReLU, max pooling, and a norm after each convolution."""

from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.models.layers import Norm, PadTo, norm_layer

MIN_SIZE: Final = 32
_KERNEL: Final = 5


def _after_convolutions(size: int) -> int:
    """Height or width after two 5 x 5 convolutions, each followed by a halving."""
    for _ in range(2):
        size = (size - _KERNEL + 1) // 2
    return size


class LeNet5(nn.Module):
    """Two convolutions and three linear layers: 6, 16, 120 and 84 wide where `width` is 6.

    Images of less than 32 x 32 are padded. 61,728 parameters for 1 channel, 10 classes, width 6.
    """

    def __init__(self, spec: InputSpec, width: int, norm: Norm) -> None:
        super().__init__()
        second, third, fourth = 8 * width // 3, 20 * width, 14 * width
        height, breadth = (
            _after_convolutions(max(size, MIN_SIZE)) for size in (spec.height, spec.width)
        )
        self.pad = PadTo(MIN_SIZE)
        self.conv1 = nn.Conv2d(spec.channels, width, _KERNEL, bias=False)
        self.norm1 = norm_layer(norm, width)
        self.conv2 = nn.Conv2d(width, second, _KERNEL, bias=False)
        self.norm2 = norm_layer(norm, second)
        self.linear1 = nn.Linear(second * height * breadth, third)
        self.linear2 = nn.Linear(third, fourth)
        self.head = nn.Linear(fourth, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled images, N x C x H x W, to logits, N x classes."""
        hidden = F.max_pool2d(F.relu(self.norm1(self.conv1(self.pad(images)))), 2)
        hidden = F.max_pool2d(F.relu(self.norm2(self.conv2(hidden))), 2)
        hidden = F.relu(self.linear1(hidden.flatten(1)))
        logits: Tensor = self.head(F.relu(self.linear2(hidden)))
        return logits
