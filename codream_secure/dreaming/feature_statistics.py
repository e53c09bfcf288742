"""R_bn: the distance of a dream batch's feature statistics from a teacher's BatchNorm memory."""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn


class FeatureStatistics:
    """Watches the input of every BatchNorm2d of a teacher while the context is open.

    A teacher without BatchNorm takes part with a penalty of zero. The running statistics are
    functions of private data that no noise protects: never use this under DP (dp.md b3).
    """

    def __init__(self, teacher: nn.Module) -> None:
        self._layers = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._distances: list[Tensor] = []

    def __enter__(self) -> Self:
        self._handles = [layer.register_forward_pre_hook(self._observe) for layer in self._layers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _observe(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0]
        mean = features.mean(dim=(0, 2, 3))
        variance = features.var(dim=(0, 2, 3), unbiased=False)
        running_mean, running_var = layer.running_mean, layer.running_var
        if not isinstance(running_mean, Tensor) or not isinstance(running_var, Tensor):
            return
        self._distances.append(
            torch.linalg.vector_norm(running_mean - mean)
            + torch.linalg.vector_norm(running_var - variance)
        )

    def penalty(self, like: Tensor) -> Tensor:
        """Return the mean over layers of ||mean difference|| + ||variance difference||.

        The mean instead of the paper's sum (Eq. 3) keeps deep and shallow teachers comparable
        in one federation.

        Args:
            like: any tensor of the dtype and device that a zero penalty should have.
        """
        if not self._distances:
            return like.new_zeros(())
        return torch.stack(self._distances).mean()
