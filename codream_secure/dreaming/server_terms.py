"""Settings of a synthesis, and the loss terms that the server computes without the clients."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.aggregation.requests import (
    Adversary,
    LabelKind,
    LabelTerms,
    LabelWeighting,
    LocalSteps,
    NoisyTerms,
)
from codream_secure.dreaming.feature_statistics import FeatureStatistics, StatisticsMemory
from codream_secure.dreaming.losses import (
    class_balance,
    class_mean_distance,
    entropy,
    squared_norm,
    total_variation,
)


class DreamTerms(TypedDict):
    """The fields of a `DreamRequest` that are the same in every step of a run."""

    bits: int
    entropy_weight: float
    bn_weight: float
    balance_weight: float
    statistics_momentum: float
    local: LocalSteps
    weight_cap: int
    batches: int


class StudentTerms(TypedDict):
    """The fields of a `Student` that are the same in every step of a run."""

    classes: int
    adversary: Adversary
    weight: float
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisSettings:
    """Public settings of a synthesis; requests send those that clients need.

    Args:
        classes: number of classes.
        bits: bits of one gradient coordinate.
        entropy_weight, bn_weight, balance_weight: weights of the clients' loss terms.
        statistics_momentum: share of earlier dreams in R_bn's feature statistics.
        tv_weight, l2_weight: weights of the server's image priors.
        statistics_weight: weight of the distance to released class means, if there are any.
        local: number and size of the steps of each client on its own copy of the dreams.
        adversary: form of R_adv, used if there is a student.
        adversary_weight: weight of R_adv.
        adversary_bits: bits of the gradient with respect to one logit of the student.
        labels: what is averaged, logits or probabilities.
        label_weighting: equal weights, or each client's confidence at each dream.
        label_bits: bits of one label.
        label_clip: logits are clipped to [-label_clip, label_clip].
        kd_temperature: temperature at which labels are softened.
        weight_cap: largest weight of a client; 0: all clients have the same weight.
        batches: number of parallel batches that one synthesis makes.
        targeted: the server's model alone moves the dreams, each towards a class.
    """

    classes: int
    bits: int
    entropy_weight: float
    bn_weight: float
    balance_weight: float
    statistics_momentum: float
    tv_weight: float
    l2_weight: float
    statistics_weight: float
    local: LocalSteps
    adversary: Adversary
    adversary_weight: float
    adversary_bits: int
    labels: LabelKind
    label_weighting: LabelWeighting
    label_bits: int
    label_clip: float
    kd_temperature: float
    weight_cap: int
    batches: int = 1
    targeted: bool = False

    @property
    def of_dreams(self) -> DreamTerms:
        """What every dream request says."""
        return DreamTerms(
            bits=self.bits,
            entropy_weight=self.entropy_weight,
            bn_weight=self.bn_weight,
            balance_weight=self.balance_weight,
            statistics_momentum=self.statistics_momentum,
            local=self.local,
            weight_cap=self.weight_cap,
            batches=self.batches,
        )

    @property
    def of_student(self) -> StudentTerms:
        """What every request with the student's logits says of them."""
        return StudentTerms(
            classes=self.classes,
            adversary=self.adversary,
            weight=self.adversary_weight,
            bits=self.adversary_bits,
        )

    def of_labels(self, noisy: NoisyTerms | None = None) -> LabelTerms:
        """Return what every request for labels says of them; ``noisy`` under client-level DP."""
        return LabelTerms(
            bits=self.label_bits,
            clip=self.label_clip if self.labels == "logits" else 0.5,
            kind=self.labels,
            temperature=self.kd_temperature,
            classes=self.classes,
            weighting=self.label_weighting,
            noisy=noisy,
        )


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """Released class means, to which the dreams of a batch are held close.

    Attributes:
        classes: the class from which each dream started, int64, shape (B,).
        means: scaled images, float32, shape (classes, C, H, W).
    """

    classes: Tensor
    means: Tensor


def own_gradient(
    dreams: Tensor, settings: SynthesisSettings, released: ClassMeans | None
) -> Tensor:
    """Return the gradient of B times the loss terms that need no client.

    Args:
        dreams: scaled images of all parallel batches, float, shape (B, C, H, W).
        settings: weights of the terms; 0 switches a term off.
        released: class means; None leaves the distance to them out.

    Returns:
        Float, shape (B, C, H, W).
    """
    s = settings
    matches = released is not None and s.statistics_weight
    if not (s.tv_weight or s.l2_weight or matches):
        return torch.zeros_like(dreams)
    leaf = dreams.detach().clone().requires_grad_()
    prior = s.tv_weight * total_variation(leaf) + s.l2_weight * squared_norm(leaf)
    if released is not None and matches:
        # Batch by batch, so that dreams of parallel batches do not influence each other.
        batches = zip(leaf.chunk(s.batches), released.classes.chunk(s.batches), strict=True)
        distances = [class_mean_distance(*batch, released.means) for batch in batches]
        prior = prior + s.statistics_weight * torch.stack(distances).mean()
    (gradient,) = torch.autograd.grad(len(leaf) * prior, leaf)
    return gradient


def student_gradient(
    student: nn.Module, dreams: Tensor, entropy_weight: float, balance_weight: float
) -> Tensor:
    """Return the gradient of B times the student's loss at the dreams.

    The student learned from released labels only and is public, so this costs no privacy.

    Args:
        student: frozen, in eval mode.
        dreams: scaled images, float, shape (B, C, H, W).
        entropy_weight: weight of the predictions' entropy.
        balance_weight: weight of class balance.

    Returns:
        Float, shape (B, C, H, W).
    """
    leaf = dreams.detach().clone().requires_grad_()
    logits = student(leaf)
    loss = entropy_weight * entropy(logits) + balance_weight * class_balance(logits)
    (gradient,) = torch.autograd.grad(len(leaf) * loss, leaf)
    return gradient


def targeted_gradient(model: nn.Module, dreams: Tensor, bn_weight: float) -> Tensor:
    """Return the gradient of B times a public model's loss at dreams, each of a class of its own.

    Dream i is of class i mod classes. The loss is the cross-entropy to it and, where the model has
    BatchNorm, R_bn.

    Args:
        model: frozen, in eval mode.
        dreams: scaled images, float, shape (B, C, H, W).
        bn_weight: weight of R_bn; 0: off.

    Returns:
        Float, shape (B, C, H, W).

    Source: DeepInversion, Yin et al., CVPR 2020.
    """
    leaf = dreams.detach().clone().requires_grad_()
    with FeatureStatistics(model) as statistics:
        logits = model(leaf)
    wanted = torch.arange(len(leaf), device=leaf.device) % logits.shape[1]
    loss = F.cross_entropy(logits, wanted)
    if bn_weight:
        loss = loss + bn_weight * statistics.penalty(logits, StatisticsMemory(), 0.0)
    (gradient,) = torch.autograd.grad(len(leaf) * loss, leaf)
    return gradient
