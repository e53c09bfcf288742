"""Sums of per-example gradients in integers, so that one example's share is bounded exactly.

Each clipped gradient is truncated towards zero. That makes no coordinate larger, so that rounding
adds nothing to the norm: one example changes the sum by at most the clip, in units of the grid,
whatever floating-point errors occur before.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.privacy.accounting import LEAST_L2

# The clip is _LEVELS * sqrt(parameters) integers long: if all numbers of a gradient at the clip
# were alike, each would be 16.
_LEVELS = LEAST_L2


@dataclass(frozen=True, slots=True)
class GradientGrid:
    """The grid of integers that stand for clipped gradients.

    Attributes:
        parameters: numbers in a gradient.
        clip: L2 bound of one example's gradient.
    """

    parameters: int
    clip: float

    @property
    def l2(self) -> int:
        """The sensitivity: the largest Euclidean norm of one example's integers."""
        return math.ceil(_LEVELS * math.sqrt(self.parameters))

    @property
    def scale(self) -> float:
        """Integers in one unit of a gradient."""
        return self.l2 / self.clip

    def sum(self, gradients: Sequence[Tensor]) -> NDArray[np.int64]:
        """Return the integer sum of clipped gradients.

        Args:
            gradients: a tensor per parameter, shape (N, ...), float.

        Returns:
            int64, shape (parameters,), in the order given.

        Guarantee:
            Adding or removing one example changes the result by at most ``l2`` in the Euclidean
            norm. An example whose gradient is not finite counts as zero.
        """
        rows = torch.cat([g.detach().flatten(1) for g in gradients], dim=1).double()
        norms = torch.linalg.vector_norm(rows, dim=1)
        broken = ~norms.isfinite()
        rows[broken], norms[broken] = 0, 0
        # Slightly below the bound, so that floating-point errors cannot exceed it.
        limit = (1 - 1e-9) * self.l2
        factors = (limit / norms.clamp_min(1e-300)).clamp(max=(1 - 1e-9) * self.scale)
        total = rows.mul_(factors[:, None]).trunc_().sum(dim=0)
        return np.asarray(total.cpu().numpy(), np.int64)


# Examples at a time. What 32 examples need stays in the processor's cache; with 128 a step takes
# twice as long.
_CHUNK = 32


def gradient_sum(model: nn.Module, x: Tensor, y: Tensor, grid: GradientGrid) -> NDArray[np.int64]:
    """Return the integer sum of the clipped gradients of all examples.

    Args:
        model: passes `model_checks.check_private_model`; keeps its weights and gets no hooks.
        x: images, scaled, float32, shape (N, C, H, W).
        y: labels, int64, shape (N,).
        grid: of the model's parameters, in their order.

    Returns:
        int64, shape (grid.parameters,).

    Guarantee:
        As `GradientGrid.sum`.
    """
    from opacus import GradSampleModule  # noqa: PLC0415 - takes seconds

    hooked = GradSampleModule(model.train(), loss_reduction="sum")
    try:
        total = np.zeros(grid.parameters, np.int64)
        for images, labels in zip(torch.split(x, _CHUNK), torch.split(y, _CHUNK), strict=True):
            loss = F.cross_entropy(hooked(images.requires_grad_()), labels, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            total += grid.sum([vars(p)["grad_sample"] for p in model.parameters()])
            hooked.zero_grad(set_to_none=True)
        return total
    finally:
        hooked.to_standard_module()
