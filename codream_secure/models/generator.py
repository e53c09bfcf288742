"""The generator of CoDream-fast: latent vectors to images in [0, 1] (Fang et al., AAAI-22)."""

from typing import Final

import torch
from torch import Tensor, nn

from codream_secure.data.spec import InputSpec

UPSAMPLING: Final = 4
SLOPE: Final = 0.2


class Generator(nn.Module):
    """A linear layer and three convolutions with two upsamplings by 2.

    Norms use the statistics of the current batch and keep no running ones: nothing here reads
    those, and in the official code they are the first values that grow without bound.

    Args:
        spec: shape of an image. For a side that 4 does not divide, the next multiple of 4 is made
            and then cut.
        latent: numbers in a latent vector.
        width: channels of the last hidden layer; the layers before it have twice as many.
        seed: of the initial weights.
    """

    def __init__(self, spec: InputSpec, *, latent: int, width: int, seed: int) -> None:
        super().__init__()
        self.latent = latent
        self._size = spec.height, spec.width
        self._low = tuple(-(-side // UPSAMPLING) for side in self._size)
        self._channels = 2 * width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(latent, self._channels * self._low[0] * self._low[1])
            self.layers = nn.Sequential(
                _norm(2 * width),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
                _norm(2 * width),
                nn.LeakyReLU(SLOPE),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
                _norm(width),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(width, spec.channels, 3, padding=1),
                nn.Sigmoid(),
            )

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents, shape (B, latent), to images in [0, 1], shape (B, C, H, W)."""
        maps = self.first(latents).reshape(-1, self._channels, *self._low)
        images: Tensor = self.layers(maps)[..., : self._size[0], : self._size[1]]
        return images


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)
