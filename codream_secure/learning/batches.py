"""A client's own examples as an endless stream of minibatches, with their augmentation and loss."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.config.concerns import LearningConfig
from codream_secure.data.augment import augmented_locally
from codream_secure.data.examples import Examples
from codream_secure.data.pixels import PixelScale
from codream_secure.runtime.parallel import stop_if_interrupted
from codream_secure.storage.checkpoint import StreamState

# Changes a minibatch of scaled images, with a generator on the CPU.
Augment = Callable[[Tensor, torch.Generator], Tensor]

# A class that a client lacks counts as half an example: its logarithm would be minus infinity.
_LEAST_COUNT = 0.5


def log_class_counts(y: Tensor, classes: int) -> Tensor:
    """Return the logarithm of how many examples each class has, float32, shape (classes,).

    Added to the logits in the local loss, it corrects for the client's own mix of classes: the
    model then learns p(image | class), whatever classes the client happens to have.

    Source: balanced softmax, Ren et al., NeurIPS 2020; logit adjustment, Menon et al., ICLR 2021.
    """
    return torch.bincount(y, minlength=classes).float().clamp(min=_LEAST_COUNT).log()


class BatchStream:
    """Endless stream of shuffled minibatches; every epoch draws a new permutation.

    Args:
        x: scaled images, float32, shape (N, C, H, W).
        y: labels, int64, shape (N,).
        batch: examples in a minibatch.
        shuffle: draws permutations and augmentations.
        augment: changes the images of every minibatch; None: they stay as they are.
        offset: added to logits in the local loss, shape (classes,): see `log_class_counts`;
            None: the plain cross-entropy.

    Attributes:
        size: examples in a minibatch; all examples if there are fewer than asked.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch: int,
        shuffle: torch.Generator,
        *,
        augment: Augment | None = None,
        offset: Tensor | None = None,
    ) -> None:
        self._x, self._y = x, y
        self.size = min(batch, len(x))
        self._shuffle = shuffle
        self._augment, self._offset = augment, offset
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return examples and labels of the next minibatch; a signal ends training here."""
        stop_if_interrupted()
        # A smaller last minibatch is left out: BatchNorm statistics of two images are noise.
        if self._position + self.size > len(self._order):
            order = torch.randperm(len(self._x), generator=self._shuffle)
            self._order = order.to(self._x.device)
            self._position = 0
        rows = self._order[self._position : self._position + self.size]
        self._position += self.size
        x = self._x[rows]
        return x if self._augment is None else self._augment(x, self._shuffle), self._y[rows]

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the local loss of a minibatch, the mean over it: logits (B, classes), y (B,)."""
        return F.cross_entropy(logits if self._offset is None else logits + self._offset, y)

    def state(self) -> StreamState:
        """Return permutation, position and generator, for a checkpoint."""
        return StreamState(
            order=self._order, position=self._position, shuffle=self._shuffle.get_state()
        )

    def restore(self, state: StreamState) -> None:
        """Restore the state that `state()` returned.

        Raises:
            ValueError: the state belongs to a stream over another number of examples.
        """
        fits = state.order.dtype == torch.int64 and len(state.order) in (0, len(self._x))
        if not fits or not 0 <= state.position <= len(state.order):
            raise ValueError("the order of other examples")
        self._order, self._position = state.order.to(self._x.device), state.position
        self._shuffle.set_state(state.shuffle)


def local_stream(
    learning: LearningConfig,
    scale: PixelScale,
    classes: int,
    local: Examples,
    shuffle: torch.Generator,
) -> BatchStream:
    """Return a stream of a client's examples, with the run's augmentation and local loss."""
    augment = None
    if learning.augment != "none":
        augment = partial(augmented_locally, learning.augment, scale)
    balanced = learning.local_loss == "balanced"
    offset = log_class_counts(local.y, classes) if balanced else None
    return BatchStream(local.x, local.y, learning.batch, shuffle, augment=augment, offset=offset)
