"""Named tensors: a model's numbers, as servers of averaged models add and average them."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Tensors = dict[str, Tensor]
# BatchNorm counts its batches in int64; the count has no effect and is not sent.
_COUNTERS = "num_batches_tracked"


def tensors_of(model: nn.Module) -> Tensors:
    """Return copies of a model's weights and buffers as float32, without BatchNorm's counters."""
    state = model.state_dict().items()
    return {n: v.detach().float().clone() for n, v in state if not n.endswith(_COUNTERS)}


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy numbers into a model, in place."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not name.endswith(_COUNTERS):
                value.copy_(tensors[name])


def fitting(found: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Return restored tensors on the device of those that they replace.

    Raises:
        ValueError: their names or shapes differ.
    """
    if found.keys() != like.keys() or any(found[n].shape != v.shape for n, v in like.items()):
        raise ValueError("the state of another model")
    return {name: found[name].to(value.device) for name, value in like.items()}


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensors:
    """Return after - before, tensor by tensor."""
    return {name: after[name] - before[name] for name in before}


def add(base: Mapping[str, Tensor], update: Mapping[str, Tensor], share: float = 1.0) -> Tensors:
    """Return base + share * update.

    A sum of quantized updates can make a running variance negative; BatchNorm would then give
    NaN, so variances are at least zero.
    """
    moved = {name: base[name] + share * update[name] for name in base}
    return {n: v.clamp_min(0) if n.endswith("running_var") else v for n, v in moved.items()}


def zeros(state: Mapping[str, Tensor]) -> Tensors:
    """Return zeros of the same names and shapes."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


def float_bytes(value: Tensor) -> bytes:
    """Return a tensor as it travels: float32, little-endian."""
    return value.detach().cpu().contiguous().numpy().astype("<f4").tobytes()


def to_codes(value: Tensor, key: bytes) -> tuple[NDArray[np.uint8], float, float]:
    """Round to 256 levels from the smallest to the largest value, without bias.

    Args:
        value: of any shape.
        key: at least 16 bytes; it determines the random rounding.

    Returns:
        Codes, uint8, shape (N,); the smallest value; the distance of two levels.
    """
    flat = value.detach().cpu().flatten().double().numpy()
    low, high = float(flat.min()), float(flat.max())
    step = (high - low) / 255 or 1.0
    draw = np.random.Generator(np.random.Philox(int.from_bytes(key[:16], "big")))
    codes = np.floor((flat - low) / step + draw.random(flat.size))
    return np.clip(codes, 0, 255).astype(np.uint8), low, step
