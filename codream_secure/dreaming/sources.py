"""Dreams whose pixels the server moves themselves (plain CoDream, Algorithm 1)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.optimizers import DreamOptimizer, dream_optimizer


class DreamSource(Protocol):
    """Where a synthesis has its dreams from."""

    def dreams(self) -> Tensor:
        """Return the dreams as they are now: scaled images, float, shape (B, C, H, W)."""

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Move them along the mean gradient of everybody's loss.

        Args:
            gradient: shape (B, C, H, W), finite.
            stride: ``stride * gradient`` is how far the clients moved their own copies in the
                mean, in scaled pixels.

        Returns:
            False if the result was not finite and was taken back.
        """


class PixelDreams:
    """A batch that starts as noise and stays within the range of pixels.

    Args:
        start: scaled images, shape (B, C, H, W).
        scale: the public pixel scale.
        optimizer: how the server moves them; its moments live as long as the batch.
        lr: step size, in scaled pixels; for ``avg`` a factor on the mean displacement.
    """

    def __init__(
        self, start: Tensor, scale: PixelScale, *, optimizer: DreamOptimizer, lr: float
    ) -> None:
        self._scale = scale
        self._dreams = scale.clamp(start)
        self._averages = optimizer == "avg"
        self._optimizer = dream_optimizer(optimizer, self._dreams, lr)

    def dreams(self) -> Tensor:
        """Return the dreams as they are now."""
        return self._dreams

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Take one step and stay within the range of pixels."""
        self._dreams.grad = stride * gradient if self._averages else gradient
        self._optimizer.step()
        with torch.no_grad():
            self._dreams.copy_(self._scale.clamp(self._dreams))
        return True


def smooth_noise(shape: tuple[int, int, int, int], draw: torch.Generator) -> Tensor:
    """Return images of random blobs and edges: noise of all sizes, none finer than the last.

    Args:
        shape: (B, C, H, W).
        draw: a generator on the CPU.

    Returns:
        float32, mean about 0 and standard deviation 1 an image.
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
    """A source whose dreams are those of several of one size, one after another.

    Args:
        batches: at least one.
    """

    def __init__(self, batches: Sequence[DreamSource]) -> None:
        self._batches = batches

    def dreams(self) -> Tensor:
        """Return all dreams as they are now."""
        return torch.cat([batch.dreams() for batch in self._batches])

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Move every batch along its part of the gradient.

        Returns:
            False if one or more took their step back; the others have moved.
        """
        parts = gradient.chunk(len(self._batches))
        moved = [b.descend(part, stride) for b, part in zip(self._batches, parts, strict=True)]
        return all(moved)
