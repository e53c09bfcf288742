"""Layers that several architectures share."""

from math import gcd
from typing import Final, Literal

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "group"]

MAX_GROUPS: Final = 32
MIN_GROUP_CHANNELS: Final = 2
VECTOR_FLOATS: Final = 8  # float32 in an AVX2 register


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Make a norm over N x `channels` x H x W."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(group_count(channels), channels)


def group_count(channels: int) -> int:
    """Number of groups for group norm.

    The greatest common divisor of 32 and `channels`, halved where a group would be one channel:
    norming each channel alone throws away how strongly it answered, and leaves nothing at all
    of a 1 x 1 map. So 6 channels make 2 groups, 8 make 4, 16 make 8, 64 and more make 32.
    """
    groups = gcd(MAX_GROUPS, channels)
    return groups // 2 if groups > 1 and channels < MIN_GROUP_CHANNELS * groups else groups


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Make a 3 x 3 convolution that keeps height and width, divided by `stride`.

    It has no bias: a norm follows, which has one.
    """
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def takes_channels_last(model: nn.Module) -> bool:
    """Return whether the channels-last layout is safe for every convolution of a model.

    oneDNN 3.12 (torch 2.14) writes past a buffer in the backward pass of a strided 1 x 1
    convolution whose input has fewer channels than a vector register has floats, on processors
    without AVX-512. The heap is then damaged and the process dies at a random later moment.
    """
    return not any(
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels % VECTOR_FLOATS
        for layer in model.modules()
    )


class PadTo(nn.Module):
    """Pad smaller images with zeros to a minimum height and width, keeping them central.

    It is a fixed transform that depends on nothing but the shape, and passes N x C x H x W
    images that are large enough through unchanged. The model's input is scaled, so zero is the
    dataset's public mean pixel.
    """

    def __init__(self, minimum: int) -> None:
        super().__init__()
        self.minimum = minimum

    def forward(self, images: Tensor) -> Tensor:
        """Pad the last two axes."""
        vertical, horizontal = (max(self.minimum - size, 0) for size in images.shape[-2:])
        if not vertical and not horizontal:
            return images
        left, top = horizontal // 2, vertical // 2
        return F.pad(images, (left, horizontal - left, top, vertical - top))
