"""Knowledge acquisition: soft labels of dreams, the dream buffer, and learning from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.buffer import Augmentation, DreamBuffer
from codream_secure.learning.learner import Learner
from codream_secure.privacy.class_means import ClassMeanImages

AcquisitionOrder = Literal["joint", "two-stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionSettings:
    """How one participant learns in a round.

    ``kd_epochs`` over the buffer (0 in rounds without distillation), in batches of ``kd_batch``,
    at temperature ``kd_temperature``, the dreams augmented as ``augmentation`` says.
    ``local_steps`` cross-entropy steps follow (two-stage) or are spread evenly over the
    distillation steps (joint); in joint order without DP every distillation step carries a local
    batch of its own besides.
    """

    order: AcquisitionOrder
    kd_epochs: int
    kd_batch: int
    kd_temperature: float
    augmentation: Augmentation
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
    count = settings.kd_epochs * buffer.batches(settings.kd_batch)
    joint = settings.order == "joint"
    taken = 0
    for index, (dreams, targets) in enumerate(_batches(buffer, settings, shuffle), start=1):
        if not joint:
            learner.distillation_step(dreams, targets, settings.kd_temperature)
            continue
        learner.joint_step(dreams, targets, settings.kd_temperature)
        due = settings.local_steps * index // count
        while taken < due:
            learner.local_step()
            taken += 1
    for _ in range(settings.local_steps - taken):
        learner.local_step()


# What everybody learns from class images before the first private step: how many batches, how many
# images in one, and the probability that their class has as a target. Public constants.
_IMAGE_STEPS, _IMAGE_BATCH, _IMAGE_CONFIDENCE = 100, 128, 0.9


def learn_images(
    learner: Learner, images: ClassMeanImages, scale: PixelScale, draw: torch.Generator
) -> None:
    """Let a participant learn from public images of every class.

    Args:
        learner: changed in place.
        images: released under DP, so that learning from them costs nothing more.
        scale: the public pixel scale.
        draw: a generator on the CPU.
    """
    classes = len(images.means)
    for _ in range(_IMAGE_STEPS):
        drawn, labels = images.draw(_IMAGE_BATCH, draw)
        targets = F.one_hot(labels, classes).float() * _IMAGE_CONFIDENCE
        targets += (1 - _IMAGE_CONFIDENCE) / classes
        dreams = scale.scale(drawn)
        learner.distillation_step(dreams, targets.to(dreams.device), 1.0)


def distil(
    learner: Learner, buffer: DreamBuffer, settings: AcquisitionSettings, shuffle: torch.Generator
) -> None:
    """Let a student without data of its own learn from the buffer alone."""
    for dreams, targets in _batches(buffer, settings, shuffle):
        learner.distillation_step(dreams, targets, settings.kd_temperature)


def _batches(
    buffer: DreamBuffer, settings: AcquisitionSettings, shuffle: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    return buffer.epochs(settings.kd_epochs, settings.kd_batch, shuffle, settings.augmentation)
