"""Dreams whose pixels the server moves themselves (plain CoDream, Algorithm 1)."""

from typing import Protocol

import torch
from torch import Tensor

from codream_secure.dreaming.optimizers import DreamOptimizer, dream_optimizer
from codream_secure.dreaming.pixels import PixelScale


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
