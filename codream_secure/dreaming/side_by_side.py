"""Batches of dreams that move together: one sum a step for all of them (`--side-by-side`).

Every batch has its own start, generator and moments, and its own R_bn and class balance; what they
share are a step's broadcast, its sum and the quantizer's clip. They cannot build on one another
within a round: they all start from the meta-generator and the running statistics of the last one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from codream_secure.dreaming.pixel_dreams import DreamSource


class SideBySide:
    """A source whose dreams are those of several of one size, one after another.

    Args:
        batches: at least one.
    """

    def __init__(self, batches: Sequence[DreamSource]) -> None:
        self._batches = batches

    def dreams(self) -> Tensor:
        """Return all dreams as they are now."""
        return torch.cat([batch.dreams() for batch in self._batches])

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Move every batch along its part of the gradient.

        Returns:
            False if one or more took their step back; the others have moved.
        """
        parts = gradient.chunk(len(self._batches))
        moved = [b.descend(part, stride) for b, part in zip(self._batches, parts, strict=True)]
        return all(moved)
