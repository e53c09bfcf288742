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
    """Return a normalization layer for inputs of shape N x `channels` x H x W."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(group_count(channels), channels)


def group_count(channels: int) -> int:
    """Return the number of groups for group norm.

    It is the greatest common divisor of 32 and `channels`, halved if a group would have fewer than
    two channels: normalizing one channel alone loses the strength of its response, and turns a
    1 x 1 map into zero.
    """
    groups = gcd(MAX_GROUPS, channels)
    return groups // 2 if groups > 1 and channels < MIN_GROUP_CHANNELS * groups else groups


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution that divides height and width by `stride`.

    It has no bias, because the norm that follows has one.
    """
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def takes_channels_last(model: nn.Module) -> bool:
    """Return whether the channels-last layout suits a model and all its convolutions."""
    if in_plain_strides in model._forward_pre_hooks.values():  # noqa: SLF001 - torch has no getter
        return False
    return not any(map(_is_narrow_shortcut, model.modules()))


def in_plain_strides(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Give a model its images in the usual layout; a hook of models that need it.

    One-channel images can be contiguous and channels-last at once, so `contiguous` would leave
    them as they are.
    """
    return tuple(image.flatten(1).view(image.shape) for image in inputs)


def keep_usual_layout(model: nn.Module) -> None:
    """Give those convolutions that channels-last damages their input in the usual layout.

    A batch of one-channel images can count as channels-last whatever the model's own layout,
    for instance after an augmentation; convolutions pass that on to the layers behind them.
    """
    for layer in filter(_is_narrow_shortcut, model.modules()):
        layer.register_forward_pre_hook(_in_usual_layout)


def _is_narrow_shortcut(layer: nn.Module) -> bool:
    """Tell whether channels-last makes a convolution damage the heap.

    oneDNN 3.12 (torch 2.14) writes past a buffer in the backward pass of a strided 1 x 1
    convolution whose input has fewer channels than a vector register has floats, on processors
    without AVX-512. The process dies at a random later moment.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels % VECTOR_FLOATS != 0
    )


def _in_usual_layout(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)


class PadTo(nn.Module):
    """Pad smaller images with zeros to a minimum height and width; the image stays in the centre.

    The transform depends on the shape alone. Images that are large enough, N x C x H x W, do not
    change. The input of a model is scaled, so zero is the public mean pixel of the dataset.
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
