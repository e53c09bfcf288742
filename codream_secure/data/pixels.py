"""Map between uint8 pixels, which are broadcast, and the values that models see."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.data.examples import Examples
from codream_secure.data.spec import Scaling


class PixelScale:
    """The public map between uint8 pixels and the scaled values that models see.

    Args:
        scaling: public mean and deviation of each channel.
        device: where scaled values live.
    """

    def __init__(self, scaling: Scaling, device: torch.device | str = "cpu") -> None:
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(scaling.mean, device=device).reshape(shape)
        self._std = torch.tensor(scaling.std, device=device).reshape(shape)
        self.low = (0 - self._mean) / self._std
        self.high = (1 - self._mean) / self._std

    def clamp(self, scaled: Tensor) -> Tensor:
        """Clip scaled values to the range that pixels can have."""
        return scaled.clamp(self.low, self.high)

    def scale(self, images: Tensor) -> Tensor:
        """Map pixels in [0, 1] to scaled values."""
        return (images.to(self._mean.device) - self._mean) / self._std

    def examples(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> Examples:
        """Return images in [0, 1], shape (N, C, H, W), and their labels, (N,), as tensors."""
        x = self.scale(torch.from_numpy(images))
        return Examples(x, torch.from_numpy(labels).to(x.device))

    def unscale(self, scaled: Tensor) -> Tensor:
        """Map scaled values to pixels in [0, 1]."""
        return scaled * self._std + self._mean

    def from_pixels(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Map uint8 pixels, shape (B, C, H, W), to float32 scaled values."""
        return self.scale(torch.tensor(pixels, device=self._mean.device).float() / 255)

    def to_pixels(self, scaled: Tensor, dither: torch.Generator) -> NDArray[np.uint8]:
        """Round scaled values to uint8 pixels, at random and without bias.

        Args:
            scaled: float32, shape (B, C, H, W).
            dither: source of the random rounding.

        Returns:
            uint8, shape (B, C, H, W).
        """
        # A client answers a broadcast only once (D1). An aborted step leaves the dreams as they
        # were, so without fresh random rounding the repeated broadcast would be refused.
        levels = self.unscale(scaled).cpu() * 255
        rounded = (levels + torch.rand(levels.shape, generator=dither)).floor()
        return rounded.clamp(0, 255).to(torch.uint8).numpy()
