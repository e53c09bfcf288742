"""R_bn: how far the feature statistics of a dream batch are from a teacher's BatchNorm memory."""

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Moments = tuple[Tensor, Tensor]
_EPSILON = 1e-5  # keeps the inverse deviation of a dead channel finite


class _ChannelMoments(torch.autograd.Function):
    """Mean and biased variance of every channel over batch and space.

    On CPUs `Tensor.var` and the gradients of mean and variance are slow over these axes
    (benchmarks/costs/dream_step.py measures the ratio). Batch norm's kernel computes both moments
    in vectorized passes. The gradient takes one more pass, since it is affine in the features.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Moments:  # noqa: ANN401 - torch's
        # Weights of float32 keep the moments of bfloat16 features in float32.
        kind = torch.promote_types(features.dtype, torch.float32)
        ones = torch.ones(features.shape[1], dtype=kind, device=features.device)
        _, mean, inverse_deviation = torch.native_batch_norm(
            features, ones, None, None, None, True, 0.0, _EPSILON
        )
        ctx.save_for_backward(features, mean)
        return mean, (inverse_deviation.pow(-2) - _EPSILON).clamp(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_mean: Tensor, to_variance: Tensor) -> Tensor:  # noqa: ANN401
        features, mean = ctx.saved_tensors
        # d mean / d x = 1 / n and d variance / d x = 2 (x - mean) / n, for n values a channel.
        count = features.numel() // features.shape[1]
        slope = 2 / count * to_variance
        offset = to_mean / count - slope * mean
        offset, slope = (v.to(features.dtype)[:, None, None] for v in (offset, slope))
        return torch.addcmul(offset, features, slope)


def channel_moments(features: Tensor) -> Moments:
    """Return mean and biased variance over batch and space, at least float32, shape (C,) each.

    Args:
        features: shape (B, C, H, W).
    """
    moments: Moments = _ChannelMoments.apply(features)
    return moments


class StatisticsMemory:
    """Running feature statistics of one client's earlier dream batches, a pair for each layer.

    With a momentum, R_bn compares the teacher's statistics with a mixture of these and of the
    present batch, so that many small batches match them together. Source: Fast-Datafree, Fang et
    al., AAAI-22.
    """

    def __init__(self) -> None:
        self._moments: list[Moments] = []

    def mixed(self, layer: int, batch: Moments, momentum: float) -> Moments:
        """Return momentum * memory + (1 - momentum) * batch for one layer."""
        if not momentum or layer >= len(self._moments):
            return batch
        mean, variance = self._moments[layer]
        return mean.lerp(batch[0], 1 - momentum), variance.lerp(batch[1], 1 - momentum)

    def take(self, batch: "FeatureStatistics", momentum: float) -> None:
        """Mix a finished batch into the memory."""
        taken = [(mean.detach(), variance.detach()) for mean, variance in batch.moments]
        self._moments = [self.mixed(i, moments, momentum) for i, moments in enumerate(taken)]

    def state(self) -> list[Moments]:
        """Return one mean and variance for each layer, for a checkpoint."""
        return list(self._moments)

    def restore(self, moments: list[Moments], device: torch.device) -> None:
        """Restore the moments that `state` returned."""
        self._moments = [(mean.to(device), variance.to(device)) for mean, variance in moments]


class FeatureStatistics:
    """Records the inputs' moments at every BatchNorm2d of a teacher while the context is open.

    A teacher without BatchNorm has a penalty of zero. Never use this under DP: the running
    statistics are functions of private data, and no noise protects them (`AnswerRules` refuses
    such requests there).

    Attributes:
        moments: mean and biased variance over batch and space, one pair for each layer.
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
        self._running.append((running_mean, running_var))
        self.moments.append(channel_moments(inputs[0]))

    def penalty(self, like: Tensor, memory: StatisticsMemory, momentum: float) -> Tensor:
        """Return R_bn = mean over layers l of ||mu_l - mu_l(x)||_2 + ||var_l - var_l(x)||_2.

        CoDream's Eq. 3 has the sum over layers. The mean makes deep and shallow teachers of one
        federation comparable.

        Args:
            like: gives dtype and device of a zero penalty.
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
