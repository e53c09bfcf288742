"""Examples as tensors."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Examples:
    """Scaled images, float32 (N, C, H, W), and labels, int64 (N,)."""

    x: Tensor
    y: Tensor
