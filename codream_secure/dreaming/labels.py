"""Soft labels of dreams: what a client contributes, and what the sum says."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.aggregation.aggregator import FieldSum
from codream_secure.aggregation.requests import LabelRequest, NoisyTerms, pixels
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.feature_statistics import FeatureStatistics
from codream_secure.dreaming.teacher import Teacher
from codream_secure.errors import StepAborted
from codream_secure.privacy.client_labels import LabelGrid, rotation
from codream_secure.privacy.noisy_sum import noisy_sum


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
    if request.labels.kind == "logits":
        values = logits.clamp(-request.labels.clip, request.labels.clip)
    else:
        values = (logits / request.labels.temperature).softmax(dim=1) - 0.5
    sections = {"labels": values}
    if request.labels.weighting == "confidence":
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
    if request.labels.noisy is not None:
        return _noisy_mean(answer, request, request.labels.noisy)
    if request.labels.weighting == "equal":
        if not request.weight_cap:
            return answer.mean("labels")
        weight = int(answer.totals["weight"][0])
        if not weight:
            raise StepAborted("the clients' weights add up to nothing")
        return answer.mean("labels") * (answer.count * request.weight_cap / weight)
    weights = answer.count * (answer.mean("confidence") + 0.5)
    # Where nobody is confident, rounding can leave nothing or less; then nobody's word counts.
    weights = np.maximum(weights, answer.count * answer.quantizer("confidence").resolution)
    sums = answer.count * answer.mean("labels").reshape(-1, request.labels.classes)
    return np.asarray((sums / weights[:, None]).ravel())


def _noisy_mean(answer: FieldSum, request: LabelRequest, terms: NoisyTerms) -> NDArray[np.float64]:
    """Return the mean of noisy labels, moved to the nearest probabilities; less 1/2."""
    grid = LabelGrid(request.shape[0], request.labels.classes)
    sums = noisy_sum(terms).decode(answer.totals["labels"], answer.count)
    mean = grid.values(sums, rotation(request)).reshape(-1, request.labels.classes) / answer.count
    return np.asarray((_onto_simplex(mean + 1 / request.labels.classes) - 0.5).ravel())


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
    values = torch.from_numpy(mean.reshape(-1, request.labels.classes))
    if request.labels.kind == "logits":
        return (values / request.labels.temperature).softmax(dim=1).float()
    # Rounding can leave a mean slightly below zero and a row slightly off one.
    probabilities = (values + 0.5).clamp_min(0)
    return (probabilities / probabilities.sum(dim=1, keepdim=True)).float()
