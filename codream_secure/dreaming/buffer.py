"""The dreams that a participant learns from, and how they are augmented."""

import math
from collections import deque
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["none", "crop", "flip-crop"]


def augmented(dreams: Tensor, how: Augmentation, draw: torch.Generator) -> Tensor:
    """Move every dream by up to an eighth of its size at random; or also mirror every other one.

    What comes in at an edge is what was next to it, mirrored. A transform that is public, of
    dreams that are public.

    Args:
        dreams: float, shape (B, C, H, W).
        how: ``crop`` moves, ``flip-crop`` also mirrors left and right (not for digits or text).
        draw: a generator on the CPU.
    """
    if how == "none":
        return dreams
    count, _, height, width = dreams.shape
    up, left = height // 8, width // 8
    padded = F.pad(dreams, (left, left, up, up), mode="reflect")
    rows = torch.randint(2 * up + 1, (count, 1), generator=draw) + torch.arange(height)
    columns = torch.randint(2 * left + 1, (count, 1), generator=draw) + torch.arange(width)
    each = torch.arange(count).view(-1, 1, 1)
    moved = padded[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
    if how == "flip-crop":
        mirrored = torch.randint(2, (count, 1, 1, 1), generator=draw).bool()
        moved = torch.where(mirrored.to(moved.device), moved.flip(3), moved)
    return moved.contiguous()


class DreamBuffer:
    """The last ``capacity`` labelled dream batches, first in, first out. Public content."""

    def __init__(self, capacity: int) -> None:
        self._batches: deque[tuple[Tensor, Tensor]] = deque(maxlen=capacity)

    def add(self, dreams: Tensor, targets: Tensor) -> None:
        """Append one batch: dreams (B, C, H, W), targets (B, classes)."""
        self._batches.append((dreams, targets))

    def state(self) -> list[tuple[Tensor, Tensor]]:
        """Return the batches, oldest first, for a checkpoint."""
        return list(self._batches)

    def __len__(self) -> int:
        return sum(len(dreams) for dreams, _ in self._batches)

    def batches(self, size: int) -> int:
        """Return how many batches of at most ``size`` dreams one epoch has."""
        return math.ceil(len(self) / size)

    def epochs(
        self, count: int, batch: int, shuffle: torch.Generator, augmentation: Augmentation = "none"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches of at most ``batch`` dreams, ``count`` times over the buffer.

        Every time they are augmented anew; their targets stay.
        """
        if not self._batches:
            return
        dreams = torch.cat([dreams for dreams, _ in self._batches])
        targets = torch.cat([targets for _, targets in self._batches])
        for _ in range(count):
            order = torch.randperm(len(dreams), generator=shuffle).to(dreams.device)
            for rows in torch.split(order, batch):
                yield augmented(dreams[rows], augmentation, shuffle), targets[rows]
