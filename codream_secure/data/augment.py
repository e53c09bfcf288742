"""Random changes to images while a model trains: of local pictures and of dreams."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.data.pixels import PixelScale

Augmentation = Literal["none", "crop", "flip-crop"]
LocalAugmentation = Literal["none", "crop", "flip-crop", "randaugment"]

# RandAugment: two operations on each image, at magnitude 9 of 30 (Cubuk et al. 2020, CIFAR-10).
_OPERATIONS, _MAGNITUDE = 2, 9 / 30
_Operation = Callable[[Tensor], Tensor]


def augmented(images: Tensor, how: Augmentation, draw: torch.Generator) -> Tensor:
    """Shift every image randomly by up to 1/8 of its size; ``flip-crop`` also flips at random.

    Args:
        images: float, shape (B, C, H, W).
        how: ``crop`` shifts, vertically and horizontally; ``flip-crop`` also flips left and right
            with probability 1/2 (not for digits or text); ``none`` does nothing.
        draw: generator on the CPU.

    Returns:
        Shape (B, C, H, W); pixels shifted in at an edge are a reflection of those inside it.
    """
    if how == "none":
        return images
    # One indexed read cuts a window of its own out of every padded image.
    count, _, height, width = images.shape
    up, left = height // 8, width // 8
    padded = F.pad(images, (left, left, up, up), mode="reflect")
    rows = torch.randint(2 * up + 1, (count, 1), generator=draw) + torch.arange(height)
    columns = torch.randint(2 * left + 1, (count, 1), generator=draw) + torch.arange(width)
    each = torch.arange(count).view(-1, 1, 1)
    moved = padded[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
    if how == "flip-crop":
        mirrored = torch.randint(2, (count, 1, 1, 1), generator=draw).bool()
        moved = torch.where(mirrored.to(moved.device), moved.flip(3), moved)
    return moved.contiguous()


def cut_mixed(images: Tensor, draw: torch.Generator) -> Tensor:
    """Paste a square of another image of the minibatch into every image, all at one place.

    Args:
        images: float, shape (B, C, H, W).
        draw: generator on the CPU; draws the square, and who gets it from whom.

    Returns:
        Shape (B, C, H, W). A square's side is H / 4 to H - 1 pixels.

    Source: Yun et al., CutMix, ICCV 2019; labels are not mixed here, a teacher gives them.
    """
    height, width = images.shape[2:]
    limit = min(height, width)
    side = int(torch.randint(max(limit // 4, 1), limit, (), generator=draw))
    top = int(torch.randint(height - side + 1, (), generator=draw))
    left = int(torch.randint(width - side + 1, (), generator=draw))
    donors = images[torch.randperm(len(images), generator=draw).to(images.device)]
    mixed = images.clone()
    square = (..., slice(top, top + side), slice(left, left + side))
    mixed[square] = donors[square]
    return mixed


def augmented_locally(
    how: LocalAugmentation, scale: PixelScale, images: Tensor, draw: torch.Generator
) -> Tensor:
    """Augment a minibatch of local pictures.

    Args:
        how: as in `augmented`; ``randaugment`` applies, after ``flip-crop``, two operations that
            are drawn for each image.
        scale: the public pixel scale; colour operations need pixels in [0, 1].
        images: scaled, float32, shape (B, C, H, W).
        draw: generator on the CPU.

    Returns:
        Scaled, float32, shape (B, C, H, W).

    Source: Cubuk et al., RandAugment, NeurIPS 2020.
    """
    if how != "randaugment":
        return augmented(images, how, draw)
    pixels = scale.unscale(augmented(images, "flip-crop", draw)).clamp(0, 1)
    operations = _operations(images.shape[-1])
    for _ in range(_OPERATIONS):
        chosen = torch.randint(len(operations), (len(pixels),), generator=draw)
        # Images with the same operation are changed together: one call instead of one an image.
        for number in sorted(set(chosen.tolist())):
            rows = (chosen == number).nonzero().squeeze(1).to(pixels.device)
            pixels[rows] = operations[number](pixels[rows])
    return scale.scale(pixels.clamp(0, 1))


def _operations(width: int) -> list[_Operation]:
    """Return RandAugment's 14 operations at one magnitude, each once with either sign.

    torchvision's class `RandAugment` draws from PyTorch's global generator, which clients that
    train in parallel would share: results would not follow from the seed.
    """
    from torchvision.transforms.v2 import functional as T  # noqa: PLC0415 - takes seconds

    found: list[_Operation] = []
    for sign in (-1.0, 1.0):
        part = sign * _MAGNITUDE
        factor, shift = 1 + 0.9 * part, int(150 / 331 * part * width)
        shear = math.degrees(math.atan(0.3 * part))
        found += [
            # These five have no sign.
            lambda images: images,
            T.autocontrast,
            T.equalize,
            partial(T.posterize, bits=8 - round(4 * _MAGNITUDE)),
            partial(T.solarize, threshold=1 - _MAGNITUDE),
            partial(T.adjust_brightness, brightness_factor=factor),
            partial(T.adjust_contrast, contrast_factor=factor),
            partial(T.adjust_sharpness, sharpness_factor=factor),
            partial(T.adjust_saturation, saturation_factor=factor),
            _affine(angle=30 * part),
            _affine(shear=(shear, 0.0)),
            _affine(shear=(0.0, shear)),
            _affine(translate=(shift, 0)),
            _affine(translate=(0, shift)),
        ]
    return found


def _affine(
    angle: float = 0.0,
    translate: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> _Operation:
    from torchvision.transforms.v2.functional import affine  # noqa: PLC0415 - takes seconds

    # torchvision's class shears around the upper left corner, as the paper's code does.
    center = [0.0, 0.0] if any(shear) else None
    return partial(
        affine,
        angle=angle,
        translate=list(translate),
        scale=1.0,
        shear=list(shear),
        center=center,
    )
