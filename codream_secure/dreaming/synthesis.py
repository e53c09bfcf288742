"""The server's side of dreaming: it holds the dreams and learns nothing but sums."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codream_secure.aggregation.aggregator import Aggregator, FieldSum
from codream_secure.aggregation.requests import (
    VERSION,
    Adversary,
    DreamRequest,
    LabelKind,
    LabelRequest,
    LabelTerms,
    LabelWeighting,
    LocalSteps,
    Request,
    Student,
    asked_labels,
)
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.labels import label_mean, soft_targets
from codream_secure.dreaming.losses import (
    class_balance,
    class_mean_distance,
    entropy,
    squared_norm,
    total_variation,
)
from codream_secure.dreaming.sources import DreamSource
from codream_secure.errors import StepAborted
from codream_secure.privacy.noisy_sum import noisy_terms
from codream_secure.privacy.release_plan import ReleasePlan
from protocols.quantization import CLIP_START, next_clip

# A label step that was aborted is tried again on dreams that have moved on by one step: clients
# refuse a broadcast that they have answered (D1).
LABEL_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisSettings:
    """Public settings of a synthesis; what clients need of them travels in every request.

    Args:
        classes: number of classes.
        bits: of a gradient coordinate.
        entropy_weight, bn_weight, balance_weight: of the clients' terms.
        statistics_momentum: share of earlier dreams in R_bn's statistics.
        tv_weight, l2_weight: of the server's priors.
        statistics_weight: of the distance to released class means, where there are some.
        local: steps that clients take on copies of their own.
        adversary: which R_adv, where a student takes part.
        adversary_weight: of R_adv.
        adversary_bits: of the gradient with respect to a logit of the student.
        labels: what is averaged.
        label_weighting: equal, or by the clients' confidence at each dream.
        label_bits: of a label.
        label_clip: public range of a logit.
        kd_temperature: at which probabilities are taken.
        weight_cap: largest weight of a client; 0: clients count alike.
        batches: that are made in one synthesis, side by side.
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


@dataclass(frozen=True, slots=True)
class LabelledDreams:
    """What one synthesis yields; all of it is public.

    ``pixels``: uint8, shape (B, C, H, W). ``targets``: float32 probabilities, shape (B, classes).
    """

    pixels: NDArray[np.uint8]
    targets: Tensor

    def split(self, batches: int) -> list["LabelledDreams"]:
        """Return the batches that were made side by side, in order."""
        parts = zip(np.split(self.pixels, batches), self.targets.chunk(batches), strict=True)
        return [LabelledDreams(pixels, targets) for pixels, targets in parts]


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """What the dreams of a batch shall be in the mean: class means that were released.

    ``classes``: that every dream began in, int64, shape (B,). ``means``: scaled, float32, shape
    (classes, C, H, W).
    """

    classes: Tensor
    means: Tensor


class Clips:
    """The public clips of dream steps, by section, carried from sum to sum (SPEC 7.4)."""

    def __init__(self) -> None:
        self.values = {"gradient": CLIP_START, "student": CLIP_START}

    def follow(self, answer: FieldSum) -> None:
        """Set the next clips from the sums of a step."""
        for section in answer.sections:
            if section.name not in self.values:
                continue
            self.values[section.name] = next_clip(
                answer.quantizer(section.name), answer.mean(section.name), answer.count
            )


class DreamSynthesis:
    """One batch of dreams, or several side by side, from their start to soft labels.

    CoDream Algorithm 1.

    Args:
        source: holds the dreams and moves them.
        scale: the public pixel scale.
        settings: public settings.
        clips: read and advanced at every step.
        noise: makes the dither of broadcasts.
        position: (round, batch), which the requests carry.
        student: frozen, in eval mode; with it dreams also seek where it disagrees (R_adv).
        label_plan: with it labels are noisy sums, and dreams are made by the student alone.
        released: class means to stay near to; None: there are none.

    Attributes:
        rolled_back: steps whose result was not finite and was taken back.
    """

    def __init__(
        self,
        source: DreamSource,
        scale: PixelScale,
        settings: SynthesisSettings,
        *,
        clips: Clips,
        noise: torch.Generator,
        position: tuple[int, int],
        student: nn.Module | None = None,
        label_plan: ReleasePlan | None = None,
        released: ClassMeans | None = None,
    ) -> None:
        self._source, self._scale, self._settings = source, scale, settings
        self._clips, self._noise, self._student = clips, noise, student
        self._label_plan, self._released = label_plan, released
        self._round, self._batch = position
        self._steps = 0
        self.rolled_back = 0

    def dream_request(self, *, with_labels: bool = False) -> DreamRequest:
        """Return the broadcast of the next dream step; with labels it asks for these as well."""
        s = self._settings
        pixels = self._pixels()
        return DreamRequest(
            version=VERSION,
            round=self._round,
            batch=self._batch,
            dream_step=self._steps,
            shape=_shape(pixels),
            dreams=pixels.tobytes(),
            bits=s.bits,
            clip=self._clips.values["gradient"],
            entropy_weight=s.entropy_weight,
            bn_weight=s.bn_weight,
            balance_weight=s.balance_weight,
            statistics_momentum=s.statistics_momentum,
            local=s.local,
            student=self._student_logits(pixels),
            weight_cap=s.weight_cap,
            labels=self._labels() if with_labels else None,
            batches=s.batches,
        )

    def _labels(self) -> LabelTerms:
        s = self._settings
        return LabelTerms(
            bits=s.label_bits,
            clip=s.label_clip if s.labels == "logits" else 0.5,
            kind=s.labels,
            temperature=s.kd_temperature,
            classes=s.classes,
            weighting=s.label_weighting,
            noisy=noisy_terms(self._label_plan.terms) if self._label_plan else None,
        )

    def label_request(self) -> LabelRequest:
        """Return the broadcast that asks for labels of the dreams as they are now."""
        s, pixels = self._settings, self._pixels()
        return LabelRequest(
            version=VERSION,
            round=self._round,
            batch=self._batch,
            shape=_shape(pixels),
            dreams=pixels.tobytes(),
            labels=self._labels(),
            statistics_momentum=s.statistics_momentum,
            weight_cap=s.weight_cap,
            batches=s.batches,
        )

    def public_step(self) -> None:
        """Move the dreams by what the server's student says of them; nobody is asked.

        Before there is a student they stay what they are.
        """
        if self._student is None:
            return
        s, dreams = self._settings, self._source.dreams()
        gradient = student_gradient(self._student, dreams, s.entropy_weight, s.balance_weight)
        self.rolled_back += not self._source.descend(gradient + self._prior_gradient(), 1.0)

    def dream_step(self, aggregator: Aggregator) -> bool:
        """Ask for one summed gradient and move the dreams; False if the step was aborted."""
        request = self.dream_request()
        self._steps += 1
        try:
            answer = aggregator.sum(request)
        except StepAborted:
            return False
        self._descend(request, answer)
        return True

    def labelled_step(self, aggregator: Aggregator) -> LabelledDreams | None:
        """Do both with one broadcast: the labels are those of the dreams before they move.

        None if all attempts were aborted.
        """
        for _ in range(LABEL_ATTEMPTS):
            request = self.dream_request(with_labels=True)
            self._steps += 1
            try:
                answer = aggregator.sum(request)
                labelled = _labelled(request, answer)
            except StepAborted:
                continue
            self._descend(request, answer)
            return labelled
        return None

    def _descend(self, request: DreamRequest, answer: FieldSum) -> None:
        self._clips.follow(answer)
        gradient = _tensor(answer.mean("gradient")).reshape(request.shape)
        gradient = gradient.to(self._scale.low.device) + self._prior_gradient()
        if request.student is not None:
            towards_student = _tensor(answer.mean("student")).reshape(-1, request.student.classes)
            gradient += self._through_student(request, towards_student)
        stride = request.local.count * request.local.size / request.clip
        self.rolled_back += not self._source.descend(gradient, stride)

    def label(self, aggregator: Aggregator) -> LabelledDreams | None:
        """Ask for the summed labels of the finished dreams; None if all attempts were aborted."""
        if self._label_plan:
            return self._noisy_label(aggregator, self._label_plan)
        for attempt in range(LABEL_ATTEMPTS):
            if attempt:
                self.dream_step(aggregator)
            request = self.label_request()
            try:
                return _labelled(request, aggregator.sum(request))
            except StepAborted:
                continue
        return None

    def _noisy_label(self, aggregator: Aggregator, plan: ReleasePlan) -> LabelledDreams | None:
        """Ask once: what is aborted is charged, and there is nothing left to try again with."""
        if not plan.reserve():
            return None
        request = self.label_request()
        try:
            answer = aggregator.sum(request)
        except StepAborted:
            return None
        plan.released(answer.count)
        return _labelled(request, answer)

    def _pixels(self) -> NDArray[np.uint8]:
        return self._scale.to_pixels(self._source.dreams(), self._noise)

    def _prior_gradient(self) -> Tensor:
        """Return the gradient of B times the server's own terms: no client is asked for it."""
        s, dreams, released = self._settings, self._source.dreams(), self._released
        matches = released is not None and s.statistics_weight
        if not (s.tv_weight or s.l2_weight or matches):
            return torch.zeros_like(dreams)
        leaf = dreams.detach().clone().requires_grad_()
        prior = s.tv_weight * total_variation(leaf) + s.l2_weight * squared_norm(leaf)
        if released is not None and matches:
            batches = zip(leaf.chunk(s.batches), released.classes.chunk(s.batches), strict=True)
            distances = [class_mean_distance(*batch, released.means) for batch in batches]
            prior = prior + s.statistics_weight * torch.stack(distances).mean()
        (gradient,) = torch.autograd.grad(len(leaf) * prior, leaf)
        return gradient

    @torch.no_grad()
    def _student_logits(self, pixels: NDArray[np.uint8]) -> Student | None:
        """Publish what the student says of the dreams that clients will see."""
        if self._student is None:
            return None
        s = self._settings
        logits = self._student(self._scale.from_pixels(pixels)).cpu().numpy()
        return Student(
            logits=logits.astype("<f4").tobytes(),
            classes=s.classes,
            adversary=s.adversary,
            weight=s.adversary_weight,
            bits=s.adversary_bits,
            clip=self._clips.values["student"],
        )

    def _through_student(self, request: DreamRequest, towards_logits: Tensor) -> Tensor:
        """Return the vector-Jacobian product of the student at the broadcast dreams."""
        if self._student is None:
            raise ValueError("the request had no student")
        pixels = np.frombuffer(request.dreams, np.uint8).reshape(request.shape)
        leaf = self._scale.from_pixels(pixels).requires_grad_()
        logits = self._student(leaf)
        (gradient,) = torch.autograd.grad(logits, leaf, towards_logits.to(logits.device))
        return gradient


def _labelled(request: Request, answer: FieldSum) -> LabelledDreams:
    """Return the request's dreams with the labels that were asked for.

    Raises:
        StepAborted: see `label_mean`.
    """
    if (asked := asked_labels(request)) is None:
        raise ValueError("no labels were asked for")
    targets = soft_targets(label_mean(answer, asked), asked)
    return LabelledDreams(np.frombuffer(request.dreams, np.uint8).reshape(request.shape), targets)


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _shape(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    count, channels, height, width = pixels.shape
    return count, channels, height, width


def student_gradient(
    student: nn.Module, dreams: Tensor, entropy_weight: float, balance_weight: float
) -> Tensor:
    """Return the gradient of the student's loss: what a client computes, of a public model.

    Args:
        student: frozen, in eval mode; learned from released labels alone.
        dreams: scaled images, shape (B, C, H, W).
        entropy_weight: of the predictions' entropy.
        balance_weight: of class balance.
    """
    leaf = dreams.detach().clone().requires_grad_()
    logits = student(leaf)
    loss = entropy_weight * entropy(logits) + balance_weight * class_balance(logits)
    (gradient,) = torch.autograd.grad(len(leaf) * loss, leaf)
    return gradient
