"""Knowledge acquisition: soft labels of dreams, the dream buffer, and learning from it."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from codream_secure.aggregation import FieldSum
from codream_secure.dreaming.feature_statistics import FeatureStatistics
from codream_secure.dreaming.pixels import PixelScale
from codream_secure.dreaming.teacher import Teacher
from codream_secure.errors import StepAborted
from codream_secure.learner import Learner
from codream_secure.messages import LabelRequest, NoisyTerms, pixels
from codream_secure.privacy.class_statistics import ClassImages
from codream_secure.privacy.client_labels import LabelGrid, rotation
from codream_secure.privacy.noisy_sum import noisy_sum

AcquisitionOrder = Literal["joint", "two-stage"]
Augmentation = Literal["none", "crop", "flip-crop"]


def label_contribution(
    teacher: Teacher, scale: PixelScale, request: LabelRequest
) -> dict[str, NDArray[np.float64]]:
    """Return what one client adds to the soft labels, by section.

    Logits are clipped to the public range. Probabilities are taken at the distillation
    temperature, so that their mean is the softened target itself, and are centred at 1/2.
    Weighted by confidence, a client's values at one dream are multiplied by 1 - H / log(classes),
    H the entropy of its prediction there: a function of model outputs alone.

    Args:
        teacher: frozen model in eval mode; its memory takes the dreams in if the request says so.
        scale: the public pixel scale.
        request: what is asked.

    Returns:
        ``labels``, float64, shape (B * classes,), in [-clip, clip]; weighted by confidence
        ``confidence``, float64, shape (B,), confidences less 1/2.
    """
    logits = _observed_logits(teacher, scale.from_pixels(pixels(request)), request)
    if request.kind == "logits":
        values = logits.clamp(-request.clip, request.clip)
    else:
        values = (logits / request.temperature).softmax(dim=1) - 0.5
    sections = {"labels": values}
    if request.weighting == "confidence":
        confidence = _confidence(logits)
        sections = {"labels": values * confidence[:, None], "confidence": confidence - 0.5}
    return {name: v.double().cpu().numpy().ravel() for name, v in sections.items()}


@torch.no_grad()
def _observed_logits(teacher: Teacher, dreams: Tensor, request: LabelRequest) -> Tensor:
    """Return the logits of finished dreams; R_bn's memory takes them in if it is asked to."""
    if not request.statistics_momentum:
        return teacher(dreams)
    logits = []
    for batch in dreams.chunk(request.batches):
        with FeatureStatistics(teacher.model) as statistics:
            logits.append(teacher(batch))
        teacher.memory.take(statistics, request.statistics_momentum)
    return torch.cat(logits)


def _confidence(logits: Tensor) -> Tensor:
    """Return 1 - H / log(classes) of every row, in [0, 1]."""
    log_p = logits.log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    return (1 - entropy / math.log(logits.shape[1])).clamp(0, 1)


def label_mean(answer: FieldSum, request: LabelRequest) -> NDArray[np.float64]:
    """Return the mean of what clients hold of the dreams, from the sums of their sections.

    Args:
        answer: sums of `label_contribution`.
        request: what had been asked.

    Returns:
        float64, shape (B * classes,): logits, or probabilities less 1/2.

    Raises:
        StepAborted: weighted by examples, and all weights are zero.
    """
    if request.noisy is not None:
        return _noisy_mean(answer, request, request.noisy)
    if request.weighting == "equal":
        if not request.weight_cap:
            return answer.mean("labels")
        weight = int(answer.totals["weight"][0])
        if not weight:
            raise StepAborted("the clients' weights add up to nothing")
        return answer.mean("labels") * (answer.count * request.weight_cap / weight)
    weights = answer.count * (answer.mean("confidence") + 0.5)
    # Where nobody is confident, rounding can leave nothing or less; then nobody's word counts.
    weights = np.maximum(weights, answer.count * answer.quantizer("confidence").resolution)
    sums = answer.count * answer.mean("labels").reshape(-1, request.classes)
    return np.asarray((sums / weights[:, None]).ravel())


def _noisy_mean(answer: FieldSum, request: LabelRequest, terms: NoisyTerms) -> NDArray[np.float64]:
    """Return the mean of noisy labels, moved to the nearest probabilities; less 1/2."""
    grid = LabelGrid(request.shape[0], request.classes)
    sums = noisy_sum(terms).decode(answer.totals["labels"], answer.count)
    mean = grid.values(sums, rotation(request)).reshape(-1, request.classes) / answer.count
    return np.asarray((_onto_simplex(mean + 1 / request.classes) - 0.5).ravel())


def _onto_simplex(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest point of every row among the probabilities (Duchi et al., ICML 2008)."""
    ordered = -np.sort(-rows, axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, rows.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    return np.asarray(np.maximum(rows - excess[np.arange(len(rows)), last][:, None], 0))


def soft_targets(mean: NDArray[np.float64], request: LabelRequest) -> Tensor:
    """Turn the mean of the clients' contributions into target probabilities.

    Args:
        mean: result of `label_mean`, shape (B * classes,).
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
    learner: Learner, images: ClassImages, scale: PixelScale, draw: torch.Generator
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
