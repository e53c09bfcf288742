"""R_bn: the distance of a dream batch's feature statistics from a teacher's BatchNorm memory."""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

Moments = tuple[Tensor, Tensor]


class StatisticsMemory:
    """Running feature statistics of the dream batches so far, one mean and variance a layer.

    With a momentum, R_bn compares the mixture of these and of the batch at hand, so that many
    small batches cover the teacher's statistics together (Fast-Datafree, Fang et al., AAAI-22).
    It belongs to one client.
    """

    def __init__(self) -> None:
        self._moments: list[Moments] = []

    def mixed(self, layer: int, batch: Moments, momentum: float) -> Moments:
        """Return ``momentum`` parts of the memory and the rest of the batch at hand."""
        if not momentum or layer >= len(self._moments):
            return batch
        mean, variance = self._moments[layer]
        return mean.lerp(batch[0], 1 - momentum), variance.lerp(batch[1], 1 - momentum)

    def take(self, batch: "FeatureStatistics", momentum: float) -> None:
        """Take a finished batch in."""
        taken = [(mean.detach(), variance.detach()) for mean, variance in batch.moments]
        self._moments = [self.mixed(i, moments, momentum) for i, moments in enumerate(taken)]

    def state(self) -> list[Moments]:
        """Return mean and variance a layer, for a checkpoint."""
        return list(self._moments)

    def restore(self, moments: list[Moments], device: torch.device) -> None:
        """Go on with the memory of the same client."""
        self._moments = [(mean.to(device), variance.to(device)) for mean, variance in moments]


class FeatureStatistics:
    """Watches the input of every BatchNorm2d of a teacher while the context is open.

    A teacher without BatchNorm takes part with a penalty of zero. The running statistics are
    functions of private data that no noise protects: never use this under DP (dp.md b3).

    Attributes:
        moments: mean and biased variance over batch and space, one pair a layer.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self._layers = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._running: list[Moments] = []
        self.moments: list[Moments] = []

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
        running_mean, running_var = layer.running_mean, layer.running_var
        if not isinstance(running_mean, Tensor) or not isinstance(running_var, Tensor):
            return
        features = inputs[0]
        if features.dtype == torch.bfloat16:
            features = features.float()
        mean = features.mean(dim=(0, 2, 3))
        variance = features.var(dim=(0, 2, 3), unbiased=False)
        self._running.append((running_mean, running_var))
        self.moments.append((mean, variance))

    def penalty(self, like: Tensor, memory: StatisticsMemory, momentum: float) -> Tensor:
        """Return the mean over layers of ||mean difference|| + ||variance difference||.

        The mean instead of the paper's sum (Eq. 3) keeps deep and shallow teachers comparable
        in one federation.

        Args:
            like: any tensor of the dtype and device that a zero penalty should have.
            memory: statistics of earlier dream batches.
            momentum: their share, 0..1.
        """
        if not self.moments:
            return like.new_zeros(())
        distances = []
        for index, (running, batch) in enumerate(zip(self._running, self.moments, strict=True)):
            mixed = memory.mixed(index, batch, momentum)
            distances += [
                torch.linalg.vector_norm(r - b) for r, b in zip(running, mixed, strict=True)
            ]
        return torch.stack(distances).sum() / len(self.moments)
