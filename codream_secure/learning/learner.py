"""One participant's model, and its training steps with and without differential privacy."""

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
    """Return T^2 * KL(targets || softmax(logits / T)), the mean over the minibatch.

    Args:
        logits: of the student, float, shape (B, classes).
        targets: probabilities already softened at T, float, shape (B, classes).
        temperature: T > 0.

    Source: CoDream, Eq. 5.
    """
    # The gradient of the KL term shrinks as 1 / T^2; the factor T^2 undoes that.
    log_p = F.log_softmax(logits / temperature, dim=1)
    return F.kl_div(log_p, targets, reduction="batchmean") * temperature**2


class BatchStream:
    """Endless stream of shuffled minibatches; every epoch draws a new permutation.

    Attributes:
        size: examples in a minibatch; all examples if there are fewer than asked.
    """

    def __init__(self, x: Tensor, y: Tensor, batch: int, shuffle: torch.Generator) -> None:
        self._x, self._y = x, y
        self.size = min(batch, len(x))
        self._shuffle = shuffle
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return examples and labels of the next minibatch."""
        # A smaller last minibatch is left out: BatchNorm statistics of two images are noise.
        if self._position + self.size > len(self._order):
            order = torch.randperm(len(self._x), generator=self._shuffle)
            self._order = order.to(self._x.device)
            self._position = 0
        rows = self._order[self._position : self._position + self.size]
        self._position += self.size
        return self._x[rows], self._y[rows]

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


class Learner(Protocol):
    """What knowledge acquisition needs of a participant, with DP or without."""

    model: nn.Module
    local_steps: int  # cross-entropy steps taken so far
    work: Work
    bf16: bool  # whether forward passes run in bfloat16

    def frozen_copy(self) -> nn.Module:
        """Return a copy in eval mode whose parameters take no gradient."""

    def local_step(self) -> None:
        """Take one cross-entropy step on local data."""

    def distillation_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one distillation step on public dreams (B, C, H, W), targets (B, classes)."""

    def joint_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take the distillation step of the joint order; without DP it includes local data."""

    def state(self) -> LearnerState:
        """Return what a checkpoint stores."""

    def restore(self, state: LearnerState) -> None:
        """Restore the state that `state()` returned."""


class PlainLearner:
    """A learner without differential privacy; one optimizer serves local data and dreams.

    Args:
        model: trained in place.
        data: local minibatches; None for a student that learns from dreams alone.
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
        """Take one distillation step on public dreams."""
        self._descend(distillation_loss(self._logits(dreams), targets, temperature))

    def joint_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one step on the sum of distillation loss and local loss."""
        # Two forward passes: in one, BatchNorm would normalize dreams and local data together.
        loss = distillation_loss(self._logits(dreams), targets, temperature)
        self._descend(loss + self._local_loss())

    def state(self) -> LearnerState:
        """Return what a checkpoint stores."""
        return LearnerState(
            model=self.model.state_dict(),
            optimizer=optimizer_state(self._optimizer),
            local_steps=self.local_steps,
            work=(self.work.trained, self.work.inferred),
            data=None if self._data is None else self._data.state(),
        )

    def restore(self, state: LearnerState) -> None:
        """Restore the state that `state()` returned.

        Raises:
            ValueError, RuntimeError: the state belongs to another model or to other data.
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
    """A learner under example-level DP: every gradient of local data goes through DP-SGD.

    Dreams and their labels are public. Distillation therefore uses a second optimizer, without
    per-example hooks and without noise. A joint step is a distillation step; `acquire` takes the
    private steps between them.

    Args:
        trainer: owns the model and the privacy budget.
        data: all local examples and labels; the trainer draws Poisson samples of them.
        learning_rate: of Adam in distillation steps.

    Guarantee:
        Only `local_step` uses local data, and each call is charged to the trainer's budget.
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
        """Take one step of DP-SGD; the budget is charged before anything is computed."""
        self.local_steps += 1
        # The expected number of examples: the number that was drawn is private.
        self.work.trained += round(self._trainer.sampling_rate * len(self._x))
        self._trainer.step(self._x, self._y)

    def distillation_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one distillation step on public dreams."""
        self._optimizer.zero_grad()
        self.work.trained += len(dreams)
        loss = distillation_loss(self.model(dreams), targets, temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def joint_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take a distillation step; `acquire` takes the private local steps separately."""
        self.distillation_step(dreams, targets, temperature)

    def state(self) -> LearnerState:
        """Return what a checkpoint stores; the state of unseeded noise is never stored."""
        return LearnerState(
            model=self.model.state_dict(),
            optimizer=optimizer_state(self._optimizer),
            local_steps=self.local_steps,
            work=(self.work.trained, self.work.inferred),
            noise=self._trainer.noise_state(),
        )

    def restore(self, state: LearnerState) -> None:
        """Restore the state that `state()` returned; `PrivacyPlan` restores the budget.

        Raises:
            ValueError, RuntimeError: the state belongs to another model.
        """
        self.model.load_state_dict(state.model)
        restore_optimizer(self._optimizer, state.optimizer)
        self.local_steps = state.local_steps
        self.work = Work(*state.work)
        self._trainer.restore_noise(state.noise)
