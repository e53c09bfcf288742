"""The optimizers with which the server moves dreams along the clients' mean gradient.

``avg``, ``adam`` and ``fedadam`` are the server optimizers of CoDream. Moments last for one whole
synthesis. Source: CoDream, Algorithm 1 and official code; Reddi et al., ICLR 2021.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

DreamOptimizer = Literal["avg", "adam", "fedadam"]

_BETAS = (0.9, 0.999)


class FedAdam(torch.optim.Optimizer):
    """Adam without bias correction, on pseudo-gradients (Reddi et al., ICLR 2021, Algorithm 2).

    Args:
        tensors: which it moves.
        lr: step size.
        betas: decay of the first and second moment.
        tau: added to the root of the second moment.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-9,
    ) -> None:
        super().__init__(tensors, {"lr": lr, "betas": betas, "tau": tau})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients of all tensors."""
        del closure
        for group in self.param_groups:
            for tensor in group["params"]:
                self._move(tensor, group)

    def _move(self, tensor: Tensor, group: dict[str, Any]) -> None:
        if tensor.grad is None:
            return
        state = self.state[tensor]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(tensor), torch.zeros_like(tensor)
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(tensor.grad, 1 - beta1)
        state["square"].lerp_(tensor.grad.square(), 1 - beta2)
        tensor.sub_(group["lr"] * state["mean"] / (state["square"].sqrt() + group["tau"]))


def dream_optimizer(name: DreamOptimizer, dreams: Tensor, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer that moves one batch of dreams.

    Args:
        name: ``avg`` moves the dreams by ``lr`` times the clients' mean displacement, which
            `PixelDreams.descend` passes as the gradient; the others take steps of about ``lr``.
        dreams: the tensor to be moved, shape (B, C, H, W).
        lr: step size in scaled pixels; with ``avg`` a factor.
    """
    if name == "avg":
        return torch.optim.SGD([dreams], lr=lr)
    if name == "fedadam":
        return FedAdam([dreams], lr)
    return torch.optim.Adam([dreams], lr=lr, betas=_BETAS)
