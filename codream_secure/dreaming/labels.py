"""Soft labels of dreams: a client's contribution, and the targets that follow from the sum."""

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
from codream_secure.privacy.label_grid import LabelGrid, rotation
from codream_secure.privacy.noisy_sum import noisy_sum


def label_contribution(
    teacher: Teacher, scale: PixelScale, request: LabelRequest
) -> dict[str, NDArray[np.float64]]:
    """Return one client's contribution to the soft labels, by section.

    Logits are clipped to the public range. Probabilities are softened at the distillation
    temperature, so that their mean is the target itself, and 1/2 is subtracted. With weighting by
    confidence, the values of a dream are multiplied by 1 - H / log(classes), where H is the
    entropy of the client's prediction. This weight depends on model outputs only.

    Args:
        teacher: frozen model in eval mode; its statistics memory is updated if the request asks.
        scale: the public pixel scale.
        request: dreams and the kind of labels asked for.

    Returns:
        ``labels``, float64, shape (B * classes,), in [-clip, clip]. With weighting by confidence
        also ``confidence``, float64, shape (B,): confidence minus 1/2.
    """
    logits = _observed_logits(teacher, scale.from_pixels(pixels(request)), request)
    if request.labels.kind == "logits":
        values = logits.clamp(-request.labels.clip, request.labels.clip)
    else:
        # The quantizer's range is symmetric: minus 1/2, a probability uses all of [-1/2, 1/2].
        values = (logits / request.labels.temperature).softmax(dim=1) - 0.5
    sections = {"labels": values}
    if request.labels.weighting == "confidence":
        confidence = _confidence(logits)
        sections = {"labels": values * confidence[:, None], "confidence": confidence - 0.5}
    return {name: v.double().cpu().numpy().ravel() for name, v in sections.items()}


@torch.no_grad()
def _observed_logits(teacher: Teacher, dreams: Tensor, request: LabelRequest) -> Tensor:
    """Return the logits of finished dreams; update R_bn's statistics memory if asked."""
    if not request.statistics_momentum:
        return teacher(dreams)
    # One batch after another, so that parallel batches leave the memory as single ones would.
    logits = []
    for batch in dreams.chunk(request.batches):
        with FeatureStatistics(teacher.model) as statistics:
            logits.append(teacher(batch))
        teacher.memory.take(statistics, request.statistics_momentum)
    return torch.cat(logits)


def _confidence(logits: Tensor) -> Tensor:
    """Return 1 - H / log(classes) for every row, in [0, 1]; H is the entropy in nats."""
    log_p = logits.log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    return (1 - entropy / math.log(logits.shape[1])).clamp(0, 1)


def label_mean(answer: FieldSum, request: LabelRequest) -> NDArray[np.float64]:
    """Return the clients' mean labels, computed from the sums of their sections.

    Args:
        answer: sums of `label_contribution` over the clients.
        request: the request that they answered.

    Returns:
        float64, shape (B * classes,): logits, or probabilities minus 1/2.
    """
    if request.labels.noisy is not None:
        return _noisy_mean(answer, request, request.labels.noisy)
    if request.labels.weighting == "equal":
        return answer.mean("labels")
    weights = answer.count * (answer.mean("confidence") + 0.5)
    # Rounding can make the weight zero or negative where no client is confident; use at least one
    # quantization step per client.
    weights = np.maximum(weights, answer.count * answer.quantizer("confidence").resolution)
    sums = answer.count * answer.mean("labels").reshape(-1, request.labels.classes)
    return np.asarray((sums / weights[:, None]).ravel())


def _noisy_mean(answer: FieldSum, request: LabelRequest, terms: NoisyTerms) -> NDArray[np.float64]:
    """Return the mean of noisy labels, projected onto the probability simplex, minus 1/2."""
    grid = LabelGrid(request.shape[0], request.labels.classes)
    sums = noisy_sum(terms).decode(answer.totals["labels"], answer.count)
    # Noisy labels had 1 / classes subtracted, which gives the smallest bound on their norm.
    mean = grid.values(sums, rotation(request)).reshape(-1, request.labels.classes) / answer.count
    return np.asarray((_onto_simplex(mean + 1 / request.labels.classes) - 0.5).ravel())


def _onto_simplex(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project every row onto the probability simplex (Duchi et al., ICML 2008)."""
    ordered = -np.sort(-rows, axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, rows.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    return np.asarray(np.maximum(rows - excess[np.arange(len(rows)), last][:, None], 0))


def soft_targets(mean: NDArray[np.float64], request: LabelRequest) -> Tensor:
    """Return the target probabilities that follow from the clients' mean labels.

    Args:
        mean: result of `label_mean`, float64, shape (B * classes,).
        request: the request that the clients answered.

    Returns:
        float32, shape (B, classes); every row sums to 1.
    """
    values = torch.from_numpy(mean.reshape(-1, request.labels.classes))
    if request.labels.kind == "logits":
        return (values / request.labels.temperature).softmax(dim=1).float()
    # Rounding can make a mean slightly negative, and the sum of a row slightly different from 1.
    probabilities = (values + 0.5).clamp_min(0)
    return (probabilities / probabilities.sum(dim=1, keepdim=True)).float()
