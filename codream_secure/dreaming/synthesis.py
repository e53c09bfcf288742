"""The server's side of dreaming: it holds the dreams and learns only sums of answers."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codream_secure.aggregation.aggregator import Aggregator, FieldSum
from codream_secure.aggregation.requests import (
    VERSION,
    DreamRequest,
    LabelRequest,
    LabelTerms,
    Request,
    Student,
    asked_labels,
)
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.labels import label_mean, soft_targets
from codream_secure.dreaming.server_terms import (
    ClassMeans,
    SynthesisSettings,
    own_gradient,
    student_gradient,
    targeted_gradient,
)
from codream_secure.dreaming.sources import DreamSource
from codream_secure.errors import StepAborted
from codream_secure.privacy.noisy_sum import noisy_terms
from codream_secure.privacy.release_plan import ReleasePlan
from protocols.quantization import CLIP_START, next_clip

# How often labels are asked for until a request is not aborted. Every attempt moves the dreams by
# one more step first: clients refuse a broadcast that they have already answered (D1).
LABEL_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class LabelledDreams:
    """The result of a synthesis; public.

    ``pixels``: uint8, shape (B, C, H, W). ``targets``: float32 probabilities, shape (B, classes).
    """

    pixels: NDArray[np.uint8]
    targets: Tensor

    def split(self, batches: int) -> list["LabelledDreams"]:
        """Return the parallel batches of which these are the dreams, in order."""
        parts = zip(np.split(self.pixels, batches), self.targets.chunk(batches), strict=True)
        return [LabelledDreams(pixels, targets) for pixels, targets in parts]


class Clips:
    """The public clips of dream steps, by section; each sum decides the next clip (SPEC 7.4)."""

    def __init__(self) -> None:
        self.values = {"gradient": CLIP_START, "student": CLIP_START}

    def follow(self, answer: FieldSum) -> None:
        """Set the clips of the next step from the sums of this one."""
        for section in answer.sections:
            if section.name not in self.values:
                continue
            self.values[section.name] = next_clip(
                answer.quantizer(section.name), answer.mean(section.name), answer.count
            )


class DreamSynthesis:
    """One batch of dreams, or several parallel ones, from their start to soft labels.

    Source: CoDream, Algorithm 1.

    Args:
        source: holds the dreams and moves them.
        scale: the public pixel scale.
        settings: public settings.
        clips: of the gradients; changed after every step.
        noise: draws the dither with which dreams are rounded to pixels.
        position: (round, batch), sent in every request.
        student: frozen, in eval mode; with it the loss has the term R_adv.
        label_plan: client-level DP: labels are noisy sums, and only the student moves the dreams.
        released: class means that the dreams stay near; None: there are none.

    Attributes:
        rolled_back: how many steps were undone because their result was not finite.
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
        """Return the request of the next dream step; ``with_labels`` asks for labels too."""
        s = self._settings
        pixels = self._pixels()
        return DreamRequest(
            version=VERSION,
            round=self._round,
            batch=self._batch,
            dream_step=self._steps,
            shape=_shape(pixels),
            dreams=pixels.tobytes(),
            clip=self._clips.values["gradient"],
            student=self._student_logits(pixels),
            labels=self._labels() if with_labels else None,
            **s.of_dreams,
        )

    def _labels(self) -> LabelTerms:
        plan = self._label_plan
        return self._settings.of_labels(noisy_terms(plan.terms) if plan else None)

    def label_request(self) -> LabelRequest:
        """Return the request for labels of the present dreams."""
        s, pixels = self._settings, self._pixels()
        return LabelRequest(
            version=VERSION,
            round=self._round,
            batch=self._batch,
            shape=_shape(pixels),
            dreams=pixels.tobytes(),
            labels=self._labels(),
            statistics_momentum=s.statistics_momentum,
            batches=s.batches,
        )

    def public_step(self) -> None:
        """Move the dreams along the loss of the server's student, without asking any client.

        Without a student the dreams do not move.
        """
        if self._student is None:
            return
        s, dreams = self._settings, self._source.dreams()
        if s.targeted:
            gradient = targeted_gradient(self._student, dreams, s.bn_weight)
        else:
            gradient = student_gradient(self._student, dreams, s.entropy_weight, s.balance_weight)
        self.rolled_back += not self._source.descend(gradient + self._own_gradient(), 1.0)

    def dream_step(self, aggregator: Aggregator) -> bool:
        """Request one summed gradient and move the dreams; return False if it was aborted."""
        request = self.dream_request()
        self._steps += 1
        try:
            answer = aggregator.sum(request)
        except StepAborted:
            return False
        self._descend(request, answer)
        return True

    def labelled_step(self, aggregator: Aggregator) -> LabelledDreams | None:
        """Request gradient and labels at once; the labels belong to the dreams before they move.

        Returns None if all attempts were aborted.
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
        gradient = gradient.to(self._scale.low.device) + self._own_gradient()
        if request.student is not None:
            towards_student = _tensor(answer.mean("student")).reshape(-1, request.student.classes)
            gradient += self._through_student(request, towards_student)
        stride = request.local.count * request.local.size / request.clip
        self.rolled_back += not self._source.descend(gradient, stride)

    @torch.no_grad()
    def label_by_student(self, temperature: float) -> LabelledDreams:
        """Return the dreams with the student's soft labels: no client is asked.

        Args:
            temperature: of the labels.
        """
        if self._student is None:
            raise ValueError("there is no student")
        pixels = self._pixels()
        logits = self._student(self._scale.from_pixels(pixels))
        return LabelledDreams(pixels, (logits / temperature).softmax(dim=1).cpu())

    def label(self, aggregator: Aggregator) -> LabelledDreams | None:
        """Request labels of the finished dreams; return None if all attempts were aborted."""
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
        """Request noisy labels once: the budget has room for this release alone, aborted or not."""
        if not plan.reserve():
            return None
        request = self.label_request()
        try:
            answer = aggregator.sum(request)
        except StepAborted:
            return None
        plan.released(answer.count)
        return _labelled(request, answer)

    def _own_gradient(self) -> Tensor:
        return own_gradient(self._source.dreams(), self._settings, self._released)

    def _pixels(self) -> NDArray[np.uint8]:
        return self._scale.to_pixels(self._source.dreams(), self._noise)

    @torch.no_grad()
    def _student_logits(self, pixels: NDArray[np.uint8]) -> Student | None:
        """Return the student's logits at the pixels that clients will receive."""
        if self._student is None:
            return None
        logits = self._student(self._scale.from_pixels(pixels)).cpu().numpy()
        return Student(
            logits=logits.astype("<f4").tobytes(),
            clip=self._clips.values["student"],
            **self._settings.of_student,
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
    """Return the request's dreams with the labels that the sums decode to.

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
