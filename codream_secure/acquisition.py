"""Knowledge acquisition: soft labels of dreams, the dream buffer, and learning from it."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codream_secure.learner import Learner
from codream_secure.messages import LabelRequest

AcquisitionOrder = Literal["joint", "two-stage"]


def label_contribution(
    teacher: nn.Module, dreams: Tensor, request: LabelRequest
) -> NDArray[np.float64]:
    """Return what one client adds to the soft labels: values in [-clip, clip].

    Logits are clipped to the public range. Probabilities are taken at the distillation
    temperature, so that their mean is the softened target itself, and are centred at 1/2.

    Args:
        teacher: frozen model in eval mode.
        dreams: scaled images, float, shape (B, C, H, W).
        request: what is asked.

    Returns:
        float64, shape (B * classes,).
    """
    with torch.no_grad():
        logits = teacher(dreams)
        if request.kind == "logits":
            values = logits.clamp(-request.clip, request.clip)
        else:
            values = (logits / request.temperature).softmax(dim=1) - 0.5
    contribution: NDArray[np.float64] = values.double().cpu().numpy().ravel()
    return contribution


def soft_targets(mean: NDArray[np.float64], request: LabelRequest) -> Tensor:
    """Turn the mean of the clients' contributions into target probabilities.

    Args:
        mean: decoded mean of `label_contribution`, shape (B * classes,).
        request: what had been asked.

    Returns:
        float32, shape (B, classes), rows summing to 1.
    """
    values = torch.from_numpy(mean.reshape(-1, request.classes))
    if request.kind == "logits":
        return (values / request.temperature).softmax(dim=1).float()
    # Rounding can leave a mean slightly below zero and a row slightly off one.
    probabilities = (values + 0.5).clamp_min(0)
    return (probabilities / probabilities.sum(dim=1, keepdim=True)).float()


class DreamBuffer:
    """The last ``capacity`` labelled dream batches, first in, first out. Public content."""

    def __init__(self, capacity: int) -> None:
        self._batches: deque[tuple[Tensor, Tensor]] = deque(maxlen=capacity)

    def add(self, dreams: Tensor, targets: Tensor) -> None:
        """Append one batch: dreams (B, C, H, W), targets (B, classes)."""
        self._batches.append((dreams, targets))

    def __len__(self) -> int:
        return sum(len(dreams) for dreams, _ in self._batches)

    def epochs(
        self, count: int, batch: int, shuffle: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches of at most ``batch`` dreams, ``count`` times over the buffer."""
        if not self._batches:
            return
        dreams = torch.cat([dreams for dreams, _ in self._batches])
        targets = torch.cat([targets for _, targets in self._batches])
        for _ in range(count):
            order = torch.randperm(len(dreams), generator=shuffle).to(dreams.device)
            for rows in torch.split(order, batch):
                yield dreams[rows], targets[rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionSettings:
    """How one participant learns in a round.

    ``kd_epochs`` over the buffer in batches of ``kd_batch`` at temperature ``kd_temperature``.
    ``local_steps`` cross-entropy steps follow (two-stage) or are spread evenly over the
    distillation steps (joint); in joint order without DP every distillation step carries a local
    batch of its own besides.
    """

    order: AcquisitionOrder
    kd_epochs: int
    kd_batch: int
    kd_temperature: float
    local_steps: int


def acquire(
    learner: Learner, buffer: DreamBuffer, settings: AcquisitionSettings, shuffle: torch.Generator
) -> None:
    """Let a participant with local data learn from the buffer and from its data.

    The number of local steps never depends on how many dreams arrived, since under DP it is
    what the budget was computed for.

    Args:
        learner: changed in place.
        buffer: may be empty; then only local steps are taken.
        settings: order and amounts.
        shuffle: order of the dreams.
    """
    batches = list(buffer.epochs(settings.kd_epochs, settings.kd_batch, shuffle))
    joint = settings.order == "joint"
    taken = 0
    for index, (dreams, targets) in enumerate(batches, start=1):
        if not joint:
            learner.distillation_step(dreams, targets, settings.kd_temperature)
            continue
        learner.joint_step(dreams, targets, settings.kd_temperature)
        due = settings.local_steps * index // len(batches)
        while taken < due:
            learner.local_step()
            taken += 1
    for _ in range(settings.local_steps - taken):
        learner.local_step()


def distil(
    learner: Learner, buffer: DreamBuffer, settings: AcquisitionSettings, shuffle: torch.Generator
) -> None:
    """Let a student without data of its own learn from the buffer alone."""
    for dreams, targets in buffer.epochs(settings.kd_epochs, settings.kd_batch, shuffle):
        learner.distillation_step(dreams, targets, settings.kd_temperature)
