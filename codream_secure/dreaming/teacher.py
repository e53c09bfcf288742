"""A client's part of a dream step: the gradient of its own loss at the dreams."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codream_secure.aggregation.requests import DreamRequest, pixels, student_logits
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.feature_statistics import FeatureStatistics, StatisticsMemory
from codream_secure.dreaming.losses import adversarial, class_balance, entropy
from codream_secure.models.evaluate import logits_of


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen model in eval mode, which answers the requests of one round.

    Args:
        model: its parameters take no gradient.
        memory: feature statistics of earlier dreams.
        adjustment: added to logits, float, shape (classes,): see `logit_adjustment`.
        bf16: see `codream_secure.models.evaluate.logits_of`.
    """

    model: nn.Module
    memory: StatisticsMemory
    adjustment: Tensor | None = None
    bf16: bool = False

    def __call__(self, dreams: Tensor) -> Tensor:
        """Return the logits of scaled images, shape (B, classes)."""
        logits = logits_of(self.model, dreams, bf16=self.bf16)
        return logits if self.adjustment is None else logits + self.adjustment


def logit_adjustment(labels: Tensor, classes: int, strength: float) -> Tensor:
    """Return -strength * log(pi), with pi the client's class frequencies (add-one smoothed).

    A model seldom predicts a class of which it saw few examples. Added to its logits, this term
    removes the effect of uneven class frequencies, so that clients with skewed data label dreams
    better together. Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021,
    post-hoc adjustment.

    The frequencies are private, and no noise protects them. Answers of such a teacher may leave
    the client only under masks, and never under DP.

    Args:
        labels: of the client's training examples, int64, shape (N,).
        classes: number of classes.
        strength: tau of the paper; 1 removes the frequencies fully.

    Returns:
        float32, shape (classes,).
    """
    counts = torch.bincount(labels, minlength=classes).float() + 1
    return -strength * (counts / counts.sum()).log()


def client_loss(
    teacher: Teacher, dreams: Tensor, request: DreamRequest, student: Tensor | None = None
) -> Tensor:
    """Return B times the weighted loss of CoDream, Eq. 3, for one batch (see `losses`).

    Args:
        teacher: of this client.
        dreams: scaled images, float, shape (B, C, H, W).
        request: weights of the terms; 0 switches one off.
        student: its logits, float, shape (B, classes); needed if the request has a student.
    """
    if request.bn_weight:
        with FeatureStatistics(teacher.model) as statistics:
            logits = teacher(dreams)
        distance = statistics.penalty(logits, teacher.memory, request.statistics_momentum)
    else:
        logits = teacher(dreams)
        distance = logits.new_zeros(())
    loss = (
        request.entropy_weight * entropy(logits)
        + request.balance_weight * class_balance(logits)
        + request.bn_weight * distance
    )
    if request.student is not None and student is not None:
        loss = loss + request.student.weight * adversarial(
            logits, student, request.student.adversary
        )
    return len(dreams) * loss


def dream_gradient(
    teacher: Teacher, dreams: Tensor, request: DreamRequest, student: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the sum of `client_loss` over all parallel batches.

    Args:
        teacher: see `client_loss`.
        dreams: scaled images of all batches, float, shape (B, C, H, W).
        request: see `client_loss`.
        student: its logits, float, shape (B, classes); needed if the request has a student.

    Returns:
        With respect to the dreams, shape (B, C, H, W), and to the student's logits, shape
        (B, classes), None without a student.
    """
    count = request.batches
    logits = [None] * count if student is None else student.chunk(count)
    found = [
        _batch_gradient(teacher, *batch, request)
        for batch in zip(dreams.chunk(count), logits, strict=True)
    ]
    towards_student = [second for _, second in found if second is not None]
    return torch.cat([first for first, _ in found]), (
        torch.cat(towards_student) if towards_student else None
    )


def _batch_gradient(
    teacher: Teacher, dreams: Tensor, student: Tensor | None, request: DreamRequest
) -> tuple[Tensor, Tensor | None]:
    leaf = dreams.detach().requires_grad_()
    inputs = [leaf]
    if student is not None:
        student = student.detach().requires_grad_()
        inputs.append(student)
    gradients = torch.autograd.grad(client_loss(teacher, leaf, request, student), inputs)
    return gradients[0], gradients[1] if student is not None else None


def dream_contribution(
    teacher: Teacher, scale: PixelScale, request: DreamRequest
) -> dict[str, NDArray[np.float32]]:
    """Return a client's contribution to the sums of a dream step, by section.

    With one local step it is the gradient at the broadcast dreams x_0. With M steps it is the
    pseudo-gradient of CoDream's Algorithm 1, (x_0 - x_M) / (M s): each step moves x by s =
    ``local.size / clip`` times the negative gradient and clamps it to the range of pixels.
    The student's logits are known only at x_0. They stay constant during local steps, and the
    gradient with respect to them is that of the first step.

    Args:
        teacher: of this client.
        scale: the public pixel scale.
        request: what is asked.

    Returns:
        ``gradient``, float32, flat; with a student ``student``, float32, flat.
    """
    start = scale.from_pixels(pixels(request))
    student = None
    if request.student is not None:
        student = torch.from_numpy(student_logits(request.student).copy()).to(start.device)
    gradient, towards_student = dream_gradient(teacher, start, request, student)
    step = request.local.size / request.clip
    position = start
    for _ in range(request.local.count - 1):
        position = scale.clamp(position - step * gradient)
        gradient, _ = dream_gradient(teacher, position, request, student)
    if request.local.count > 1:
        position = scale.clamp(position - step * gradient)
        gradient = (start - position) / (step * request.local.count)
    sections = {"gradient": gradient}
    if towards_student is not None:
        sections["student"] = towards_student
    return {name: values.cpu().numpy().ravel() for name, values in sections.items()}
