"""Knowledge acquisition: a participant learns from buffered dreams and from its local data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.data.augment import Augmentation
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.buffer import DreamBuffer
from codream_secure.learning.learner import Learner
from codream_secure.privacy.class_means import ClassMeanImages

AcquisitionOrder = Literal["joint", "two-stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionSettings:
    """How one participant learns in a round.

    Attributes:
        order: two-stage takes the local steps after the distillation steps; joint spreads them
            evenly between these, and without DP every joint step also trains on one more local
            minibatch (see `PlainLearner.joint_step`).
        kd_epochs: passes over the dream buffer; 0 in a round without distillation.
        kd_batch: most dreams in one minibatch.
        kd_temperature: T of the distillation loss.
        augmentation: how the dreams are augmented, anew in every pass.
        local_steps: cross-entropy steps on local data.
        rate: share of the full learning rate in this round, 0 to 1 (`schedule.round_rate`).
    """

    order: AcquisitionOrder
    kd_epochs: int
    kd_batch: int
    kd_temperature: float
    augmentation: Augmentation
    local_steps: int
    rate: float = 1.0


def acquire(
    learner: Learner, buffer: DreamBuffer, settings: AcquisitionSettings, shuffle: torch.Generator
) -> None:
    """Train a participant on the dream buffer and on its local data.

    It always takes exactly ``settings.local_steps`` local steps, however many dreams arrived:
    under DP, the privacy budget was charged for that number.

    Args:
        learner: trained in place.
        buffer: if it is empty, only local steps are taken.
        settings: order, and numbers of passes and steps.
        shuffle: draws the order and the augmentation of the dreams.
    """
    learner.set_rate(settings.rate)
    count = settings.kd_epochs * buffer.batches(settings.kd_batch)
    joint = settings.order == "joint"
    taken = 0
    for index, (dreams, targets) in enumerate(_batches(buffer, settings, shuffle), start=1):
        if not joint:
            learner.distillation_step(dreams, targets, settings.kd_temperature)
            continue
        learner.joint_step(dreams, targets, settings.kd_temperature)
        # After joint step i of n, the share i / n of the local steps has been taken.
        due = settings.local_steps * index // count
        while taken < due:
            learner.local_step()
            taken += 1
    for _ in range(settings.local_steps - taken):
        learner.local_step()


# Training on class images, before the first private step: number of minibatches, images in each,
# and target probability of an image's own class. Public constants.
_IMAGE_STEPS, _IMAGE_BATCH, _IMAGE_CONFIDENCE = 100, 128, 0.9


def learn_images(
    learner: Learner, images: ClassMeanImages, scale: PixelScale, draw: torch.Generator
) -> None:
    """Train a participant on public images of every class.

    Args:
        learner: trained in place.
        images: made from class means that were released under DP. Training on them is
            post-processing and costs no further privacy.
        scale: the public pixel scale.
        draw: generator on the CPU; draws the images.
    """
    classes = len(images.means)
    for _ in range(_IMAGE_STEPS):
        drawn, labels = images.draw(_IMAGE_BATCH, draw)
        targets = F.one_hot(labels, classes).float() * _IMAGE_CONFIDENCE
        targets += (1 - _IMAGE_CONFIDENCE) / classes
        dreams = scale.scale(drawn)
        # T = 1: these targets are given as they are, no teacher softened them.
        learner.distillation_step(dreams, targets.to(dreams.device), 1.0)


def distil(
    learner: Learner, buffer: DreamBuffer, settings: AcquisitionSettings, shuffle: torch.Generator
) -> None:
    """Train a student without local data on the dream buffer alone."""
    learner.set_rate(settings.rate)
    for dreams, targets in _batches(buffer, settings, shuffle):
        learner.distillation_step(dreams, targets, settings.kd_temperature)


def _batches(
    buffer: DreamBuffer, settings: AcquisitionSettings, shuffle: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    return buffer.epochs(settings.kd_epochs, settings.kd_batch, shuffle, settings.augmentation)
