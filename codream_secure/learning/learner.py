"""One participant's model, and its training steps with and without differential privacy."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from codream_secure.config.concerns import LearningConfig
from codream_secure.learning.batches import BatchStream
from codream_secure.learning.compute import Work
from codream_secure.models.evaluate import frozen_copy, logits_of
from codream_secure.storage.checkpoint import (
    LearnerState,
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


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are; minibatches are normalized as before.

    Dreams are no samples of a client's data: statistics that mix both fit neither when the model
    is evaluated.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


class Learner(Protocol):
    """What knowledge acquisition needs of a participant, with DP or without."""

    model: nn.Module
    local_steps: int  # cross-entropy steps taken so far
    work: Work
    bf16: bool  # whether forward passes run in bfloat16
    rate: float  # share of the full learning rate that steps have now

    def set_rate(self, share: float) -> None:
        """Take the next steps with this share of the full learning rate, 0 to 1."""

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


def build_optimizer(model: nn.Module, learning: LearningConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a model's parameters."""
    parameters, rate, decay = model.parameters(), learning.learning_rate, learning.weight_decay
    if learning.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True, foreach=True
        )
    kind = torch.optim.Adam if learning.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, foreach=True)


class PlainLearner:
    """A learner without differential privacy; one optimizer serves local data and dreams.

    Args:
        model: trained in place.
        data: local minibatches; None for a student that learns from dreams alone.
        learning: how it is trained.
        bf16: see `logits_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: BatchStream | None,
        learning: LearningConfig,
        *,
        bf16: bool = False,
    ) -> None:
        self.model = model
        self.bf16 = bf16
        self.local_steps = 0
        self.work = Work()
        self.rate = 1.0
        self.data = data
        self._full_rate = learning.learning_rate
        self.optimizer = build_optimizer(model, learning)
        # A learner without local data has no other source of BatchNorm statistics than dreams.
        self._keeps_statistics = learning.kd_statistics == "keep" and data is not None
        model.train()

    def set_rate(self, share: float) -> None:
        """Take the next steps with this share of the full learning rate, 0 to 1."""
        self.rate = share
        for group in self.optimizer.param_groups:
            group["lr"] = share * self._full_rate

    def frozen_copy(self) -> nn.Module:
        """Return a copy in eval mode whose parameters take no gradient."""
        return frozen_copy(self.model)

    def _local_loss(self) -> Tensor:
        if self.data is None:
            raise ValueError("this learner has no local data")
        self.local_steps += 1
        x, y = self.data.next()
        return self.data.loss(self._logits(x), y)

    def _logits(self, x: Tensor) -> Tensor:
        self.work.trained += len(x)
        return logits_of(self.model, x, bf16=self.bf16)

    def _distillation_loss(self, dreams: Tensor, targets: Tensor, temperature: float) -> Tensor:
        with kept_statistics(self.model) if self._keeps_statistics else nullcontext():
            logits = self._logits(dreams)
        return distillation_loss(logits, targets, temperature)

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def local_step(self) -> None:
        """Take one cross-entropy step on local data."""
        self._descend(self._local_loss())

    def distillation_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one distillation step on public dreams."""
        self._descend(self._distillation_loss(dreams, targets, temperature))

    def joint_step(self, dreams: Tensor, targets: Tensor, temperature: float) -> None:
        """Take one step on the sum of distillation loss and local loss."""
        # Two forward passes: in one, BatchNorm would normalize dreams and local data together.
        loss = self._distillation_loss(dreams, targets, temperature)
        self._descend(loss + self._local_loss())

    def state(self) -> LearnerState:
        """Return what a checkpoint stores."""
        return LearnerState(
            model=self.model.state_dict(),
            optimizer=optimizer_state(self.optimizer),
            local_steps=self.local_steps,
            work=(self.work.trained, self.work.inferred),
            data=None if self.data is None else self.data.state(),
        )

    def restore(self, state: LearnerState) -> None:
        """Restore the state that `state()` returned.

        Raises:
            ValueError, RuntimeError: the state belongs to another model or to other data.
        """
        self.model.load_state_dict(state.model)
        restore_optimizer(self.optimizer, state.optimizer)
        self.local_steps = state.local_steps
        self.work = Work(*state.work)
        if (self.data is None) != (state.data is None):
            raise ValueError("a learner with data is none without")
        if self.data is not None and state.data is not None:
            self.data.restore(state.data)


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
        self.rate = 1.0
        self._trainer = trainer
        self._x, self._y = data
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)

    def set_rate(self, share: float) -> None:
        """Do nothing: a private run has no schedule."""

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
