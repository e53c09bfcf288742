"""The buffer of labelled dreams that participants learn from."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from codream_secure.data.augment import Augmentation, augmented
from codream_secure.runtime.parallel import stop_if_interrupted


class DreamBuffer:
    """Holds the last ``capacity`` labelled dream batches, first in, first out; all are public."""

    def __init__(self, capacity: int) -> None:
        self._batches: deque[tuple[Tensor, Tensor]] = deque(maxlen=capacity)

    def add(self, dreams: Tensor, targets: Tensor) -> None:
        """Append a dream batch: dreams (B, C, H, W), targets (B, classes)."""
        self._batches.append((dreams, targets))

    def state(self) -> list[tuple[Tensor, Tensor]]:
        """Return the dream batches, oldest first, for a checkpoint."""
        return list(self._batches)

    def __len__(self) -> int:
        return sum(len(dreams) for dreams, _ in self._batches)

    def batches(self, size: int) -> int:
        """Return how many minibatches an epoch has, as `epochs` cuts them."""
        return len(_sizes(len(self), size))

    def epochs(
        self, count: int, batch: int, shuffle: torch.Generator, augmentation: Augmentation = "none"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled minibatches of ``batch`` dreams and their targets.

        The last one of a pass may be smaller; a single dream that is left over joins the minibatch
        before it, because BatchNorm cannot normalize one value. It passes ``count`` times over the
        buffer. Dreams are augmented anew in every pass, and keep their targets. Dreams are
        public and so is the transform: it costs no privacy.
        """
        if not self._batches:
            return
        dreams = torch.cat([dreams for dreams, _ in self._batches])
        targets = torch.cat([targets for _, targets in self._batches])
        for _ in range(count):
            order = torch.randperm(len(dreams), generator=shuffle).to(dreams.device)
            for rows in torch.split(order, _sizes(len(order), batch)):
                stop_if_interrupted()
                yield augmented(dreams[rows], augmentation, shuffle), targets[rows]


def _sizes(count: int, batch: int) -> list[int]:
    """Return the sizes of the minibatches that ``count`` dreams are cut into."""
    sizes = [batch] * (count // batch)
    left = count % batch
    if left == 1 and sizes:
        sizes[-1] += 1
    elif left:
        sizes.append(left)
    return sizes
