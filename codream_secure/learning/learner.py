"""One participant's model and the steps by which it learns."""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.learning.compute import Work
from codream_secure.models.evaluate import frozen_copy, logits_of
from codream_secure.storage.checkpoint import (
    LearnerState,
    StreamState,
    optimizer_state,
    restore_optimizer,
)

if TYPE_CHECKING:
    from codream_secure.privacy.dpsgd import PrivateTrainer


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(targets || softmax(logits / T)), mean over the batch (CoDream Eq. 5).

    Args:
        logits: the student's, float, shape (B, classes).
        targets: probabilities that were already softened, float, shape (B, classes).
        temperature: T > 0.
    """
    log_p = F.log_softmax(logits / temperature, dim=1)
    return F.kl_div(log_p, targets, reduction="batchmean") * temperature**2


class BatchStream:
    """Endless shuffled batches over tensors in memory; every epoch is a fresh permutation.

    Attributes:
        size: examples in a batch.
    """

    def __init__(self, x: Tensor, y: Tensor, batch: int, shuffle: torch.Generator) -> None:
        self._x, self._y = x, y
        self.size = min(batch, len(x))
        self._shuffle = shuffle
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        # A last, smaller batch is left out: BatchNorm statistics of two images are noise.
        if self._position + self.size > len(self._order):
            order = torch.randperm(len(self._x), generator=self._shuffle)
            self._order = order.to(self._x.device)
            self._position = 0
        rows = self._order[self._position : self._position + self.size]
        self._position += self.size
        return self._x[rows], self._y[rows]

    def state(self) -> StreamState:
        """Return where the stream is."""
        return StreamState(
            order=self._order, position=self._position, shuffle=self._shuffle.get_state()
        )

    def restore(self, state: StreamState) -> None:
        """Go on from where a stream over the same examples was.

        Raises:
            ValueError: it was a stream over others.
        """
        fits = state.order.dtype == torch.int64 and len(state.order) in (0, len(self._x))
        if not fits or not 0 <= state.position <= len(state.order):
            raise ValueError("the order of other examples")
        self._order, self._position = state.order.to(self._x.device), state.position
        self._shuffle.set_state(state.shuffle)


class Learner(Protocol):
    """What knowledge acquisition needs of a participant, private or not."""

    model: nn.Module
    local_steps: int  # cross-entropy steps taken so far
    work: Work
    bf16: bool  # whether forward passes run in bfloat16

    def frozen_copy(self) -> nn.Module:
        """Return a copy in eval mode whose parameters take no gradient."""

    def local_step(self) -> None:
        """Take one cross-entropy step on local data."""

    def distillation_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one step towards the soft labels of public dreams."""

    def joint_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one step on public dreams and local data together."""

    def state(self) -> LearnerState:
        """Return what a checkpoint holds of it."""

    def restore(self, state: LearnerState) -> None:
        """Become what it was."""


class PlainLearner:
    """Learns without differential privacy, with one optimizer for local data and dreams.

    Args:
        model: trained in place.
        data: local batches, or None for a student that sees dreams alone.
        learning_rate: of Adam.
        bf16: see `logits_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: BatchStream | None,
        learning_rate: float,
        *,
        bf16: bool = False,
    ) -> None:
        self.model = model
        self.bf16 = bf16
        self.local_steps = 0
        self.work = Work()
        self._data = data
        self._optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, foreach=True)
        model.train()

    def frozen_copy(self) -> nn.Module:
        """Return a copy in eval mode whose parameters take no gradient."""
        return frozen_copy(self.model)

    def _local_loss(self) -> Tensor:
        if self._data is None:
            raise ValueError("this learner has no local data")
        self.local_steps += 1
        x, y = self._data.next()
        return F.cross_entropy(self._logits(x), y)

    def _logits(self, x: Tensor) -> Tensor:
        self.work.trained += len(x)
        return logits_of(self.model, x, bf16=self.bf16)

    def _descend(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def local_step(self) -> None:
        """Take one cross-entropy step on local data."""
        self._descend(self._local_loss())

    def distillation_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one step towards the soft labels of public dreams."""
        self._descend(distillation_loss(self._logits(dreams), targets, temperature))

    def joint_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one step on both losses; two forward passes, so that BatchNorm does not mix them."""
        loss = distillation_loss(self._logits(dreams), targets, temperature)
        self._descend(loss + self._local_loss())

    def state(self) -> LearnerState:
        """Return what a checkpoint holds of it."""
        return LearnerState(
            model=self.model.state_dict(),
            optimizer=optimizer_state(self._optimizer),
            local_steps=self.local_steps,
            work=(self.work.trained, self.work.inferred),
            data=None if self._data is None else self._data.state(),
        )

    def restore(self, state: LearnerState) -> None:
        """Become what it was.

        Raises:
            ValueError, RuntimeError: the state is that of another model or of other data.
        """
        self.model.load_state_dict(state.model)
        restore_optimizer(self._optimizer, state.optimizer)
        self.local_steps = state.local_steps
        self.work = Work(*state.work)
        if (self._data is None) != (state.data is None):
            raise ValueError("a learner with data is none without")
        if self._data is not None and state.data is not None:
            self._data.restore(state.data)


class PrivateLearner:
    """Learns under example-level DP: every gradient of local data goes through DP-SGD.

    Dreams and their labels are public, so distillation uses an optimizer of its own, without
    hooks and without noise. A joint step is a distillation step; `acquire` spreads the private
    steps between them.

    Args:
        trainer: owns the model and the privacy budget.
        data: all local examples and labels; Poisson sampling happens inside the trainer.
        learning_rate: of Adam on dreams.

    Guarantee:
        Local data is touched by `local_step` alone, each charged to the trainer's budget.
    """

    def __init__(
        self, trainer: "PrivateTrainer", data: tuple[Tensor, Tensor], learning_rate: float
    ) -> None:
        self.model = trainer.model
        self.bf16 = False  # DP-SGD keeps every example's gradient in float32
        self.local_steps = 0
        self.work = Work()
        self._trainer = trainer
        self._x, self._y = data
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)

    def frozen_copy(self) -> nn.Module:
        """Return a copy in eval mode whose parameters take no gradient."""
        return frozen_copy(self.model)

    def local_step(self) -> None:
        """Take one step of DP-SGD; it is charged before anything is computed."""
        self.local_steps += 1
        # The expected number: how many were drawn is private.
        self.work.trained += round(self._trainer.sampling_rate * len(self._x))
        self._trainer.step(self._x, self._y)

    def distillation_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one step towards the soft labels of public dreams."""
        self._optimizer.zero_grad()
        self.work.trained += len(dreams)
        loss = distillation_loss(self.model(dreams), targets, temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def joint_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take the public half of a joint step."""
        self.distillation_step(dreams, targets, temperature)

    def state(self) -> LearnerState:
        """Return what a checkpoint holds of it: noise that is not seeded is never stored."""
        return LearnerState(
            model=self.model.state_dict(),
            optimizer=optimizer_state(self._optimizer),
            local_steps=self.local_steps,
            work=(self.work.trained, self.work.inferred),
            noise=self._trainer.noise_state(),
        )

    def restore(self, state: LearnerState) -> None:
        """Become what it was; the budget is the plan's to restore.

        Raises:
            ValueError, RuntimeError: the state is that of another model.
        """
        self.model.load_state_dict(state.model)
        restore_optimizer(self._optimizer, state.optimizer)
        self.local_steps = state.local_steps
        self.work = Work(*state.work)
        self._trainer.restore_noise(state.noise)
