"""Dream sources, and dreams whose pixels are optimized directly (CoDream, Algorithm 1)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.optimizers import DreamOptimizer, dream_optimizer


class DreamSource(Protocol):
    """Holds the dreams of a synthesis and takes its optimization steps."""

    def dreams(self) -> Tensor:
        """Return the current dreams: scaled images, float, shape (B, C, H, W)."""

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Take one step down the mean gradient of the losses.

        Args:
            gradient: float, shape (B, C, H, W), finite.
            stride: the clients' own copies of the dreams moved by ``-stride * gradient`` in the
                mean, in scaled pixels.

        Returns:
            False if the result was not finite and was undone.
        """


class PixelDreams:
    """A dream batch whose pixels are the optimized parameters, clamped to the range of pixels.

    Args:
        start: scaled images, float, shape (B, C, H, W).
        scale: the public pixel scale.
        optimizer: the server's optimizer; its moments are kept for the whole batch.
        lr: step size, in scaled pixels; for ``avg`` a factor of the mean displacement.
    """

    def __init__(
        self, start: Tensor, scale: PixelScale, *, optimizer: DreamOptimizer, lr: float
    ) -> None:
        self._scale = scale
        self._dreams = scale.clamp(start)
        self._averages = optimizer == "avg"
        self._optimizer = dream_optimizer(optimizer, self._dreams, lr)

    def dreams(self) -> Tensor:
        """Return the current dreams."""
        return self._dreams

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Take one step and clamp the pixels; it can always be taken."""
        self._dreams.grad = stride * gradient if self._averages else gradient
        self._optimizer.step()
        with torch.no_grad():
            self._dreams.copy_(self._scale.clamp(self._dreams))
        return True


def smooth_noise(shape: tuple[int, int, int, int], draw: torch.Generator) -> Tensor:
    """Return images of random blobs and edges.

    Each is a sum of Gaussian noise on grids of 2, 4, 8, ... values a side, up to the image's size,
    each enlarged to that size.

    Args:
        shape: (B, C, H, W).
        draw: generator on the CPU.

    Returns:
        float32; every image has a mean near 0 and a standard deviation of 1.
    """
    count, channels, height, width = shape
    total, side = torch.zeros(shape), 2
    while side <= max(height, width):
        coarse = torch.randn((count, channels, side, side), generator=draw)
        total += F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
        side *= 2
    spread = total.flatten(1).std(dim=1).clamp_min(1e-6).reshape(-1, 1, 1, 1)
    return total / spread


class ParallelBatches:
    """Joins several sources into one, so that one aggregation serves all of them.

    Args:
        batches: at least one; all have the same number of dreams.
    """

    def __init__(self, batches: Sequence[DreamSource]) -> None:
        self._batches = batches

    def dreams(self) -> Tensor:
        """Return the current dreams of all batches, concatenated."""
        return torch.cat([batch.dreams() for batch in self._batches])

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Take a step of every batch with its part of the gradient.

        Returns:
            False if one or more batches undid their step; the others keep theirs.
        """
        parts = gradient.chunk(len(self._batches))
        moved = [b.descend(part, stride) for b, part in zip(self._batches, parts, strict=True)]
        return all(moved)
