"""How well a model does, measured by its owner."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_secure.dreaming.pixels import PixelScale

_BATCH = 256


@torch.no_grad()
def accuracy(
    model: nn.Module, scale: PixelScale, images: NDArray[np.float32], labels: NDArray[np.int64]
) -> float | None:
    """Return the fraction of examples whose label has the largest logit; None if there are none.

    Args:
        model: in eval mode.
        scale: the public pixel scale.
        images: in [0, 1], float32, shape (N, C, H, W).
        labels: int64, shape (N,).
    """
    if not len(labels):
        return None
    parts = torch.split(scale.scale(torch.from_numpy(images)), _BATCH)
    found = torch.cat([model(part).argmax(dim=1) for part in parts]).numpy()
    return float((found == labels).mean())
