"""One client of a run: its data and model stay here, and only what `answer` returns leaves it."""

import dataclasses
import logging
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import (
    AskedOfClient,
    DreamRequest,
    EvaluateRequest,
    GradientRequest,
    LabelRequest,
    LabelTerms,
    ModelRequest,
    NoisyTerms,
    Request,
    StatisticsRequest,
    asked_labels,
    digest,
)
from codream_secure.aggregation.sections import sections
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.feature_statistics import StatisticsMemory
from codream_secure.dreaming.labels import label_contribution
from codream_secure.dreaming.teacher import Teacher, dream_contribution
from codream_secure.errors import RequestRefused
from codream_secure.federation.answer_rules import AnswerRules
from codream_secure.federation.messenger import OwnMessenger
from codream_secure.federation.noisy_messenger import NoisyRequest, OwnNoisySums
from codream_secure.learning.learner import Learner
from codream_secure.privacy.class_means import OwnClassMeans
from codream_secure.privacy.label_grid import LabelGrid, rotation
from codream_secure.privacy.release_plan import NoisyReleases
from codream_secure.storage.checkpoint import ClientState
from protocols.primitives.keys import hkdf
from protocols.quantization import Quantizer, repairs

# Quantized sections by name.
SectionCodes = Mapping[str, NDArray[np.uint32]]
# What a client contributes before it is quantized, by section.
Values = Mapping[str, NDArray[np.floating]]
# Sections that count by a client's examples where the request has a cap W. Weighted values have the
# range c * weight / W but are rounded in steps of the full range c. In units of the mean the
# variance of rounding is at most n W^2 c^2 / (L^2 (sum of weights)^2), with L the levels of the
# quantizer (D20). With even shares of W / 4 this is 16 times the variance of equal weights; two
# more bits make up for it.
_WEIGHTED = frozenset({"gradient", "student"})
_log = logging.getLogger(__name__)


class Client:
    """Answers the server's requests from a frozen copy of its model.

    Every kind of request has one handler. What a handler returns is masked before it leaves.

    Args:
        learner: the client's model and data.
        scale: the public pixel scale.
        rounding_seed: 32 secret bytes that key the rounding stream.
        rules: which requests it answers.
        statistics: its noisy class means and the terms of their release; None: it releases none.
        releases: its share of noise in label sums, under client-level DP.
        examples: how many training examples it has; its weight where weights are asked for.
        adjustment: added to its teacher's logits; never given under DP (see `logit_adjustment`).
        messenger: its copy of the common model; None: it answers no request for one.
        noisy: its part in noisy sums for the common model; with it, it answers nothing else.

    Attributes:
        teacher: the frozen copy.
        measure: returns the accuracy of its own model, 0..1; None if it has none to tell.
        failed: is told of an error in a computation over private data. It raises unless it is
            replaced: a simulation stops at errors of its code. Over machines a site only notes
            them, and the client contributes zeros: a refusal would tell the server something.
        repaired: numbers so far that were not finite, and counted as 0 or as the clip.
    """

    def __init__(
        self,
        learner: Learner,
        scale: PixelScale,
        rounding_seed: bytes,
        rules: AnswerRules,
        *,
        statistics: OwnClassMeans | None = None,
        releases: NoisyReleases | None = None,
        examples: int = 1,
        adjustment: Tensor | None = None,
        messenger: OwnMessenger | None = None,
        noisy: OwnNoisySums | None = None,
    ) -> None:
        self.learner = learner
        self.noisy = noisy
        self.messenger = messenger
        self._scale = scale
        self._rounding_seed = rounding_seed
        self._rules = rules
        self._statistics = statistics
        self._releases = releases
        self._examples = examples
        self.teacher = Teacher(
            learner.frozen_copy(), StatisticsMemory(), adjustment, bf16=learner.bf16
        )
        self.measure: Callable[[], float | None] = lambda: None
        self.failed: Callable[[Exception], None] = _raise
        self.repaired = 0
        self._answered: set[bytes] = set()

    def freeze_teacher(self) -> None:
        """Copy the model; the copy answers the requests of this round."""
        self.teacher = dataclasses.replace(self.teacher, model=self.learner.frozen_copy())

    def answer(self, broadcast: bytes, step: int) -> SectionCodes:
        """Compute, clip and quantize what a request asks for; the caller must mask the result.

        Args:
            broadcast: the encoded request.
            step: protocol step; selects the rounding stream.

        Returns:
            section name to uint32 codes.

        Raises:
            RequestRefused: the request is malformed, outside the rules, or was already answered in
                this session (D1).
        """
        return self.compute(self.admit(broadcast), broadcast, step)

    def admit(self, broadcast: bytes) -> AskedOfClient:
        """Check a request against the rules; nothing here depends on private data.

        Args:
            broadcast: the encoded request.

        Returns:
            The decoded request, for `compute`. It counts as answered from now on (D1).

        Raises:
            RequestRefused: see `answer`.
        """
        request = decode_request(broadcast)
        self._check(request)
        seen = digest(broadcast)
        if seen in self._answered:
            raise RequestRefused("this broadcast was answered before in this session")
        if isinstance(request, GradientRequest | StatisticsRequest) and self.noisy is not None:
            self.noisy.check(request)
        if isinstance(request, LabelRequest) and request.labels.noisy is not None:
            self._charge_noisy(request, request.labels.noisy)
        self._answered.add(seen)
        return request

    def compute(self, request: AskedOfClient, broadcast: bytes, step: int) -> SectionCodes:
        """Answer an admitted request. It gives every section whatever the private data are.

        Args:
            request: from `admit`.
            broadcast: the same, encoded.
            step: protocol step; selects the rounding stream.

        Returns:
            As `answer`.
        """
        match request:
            case DreamRequest():
                return self._answer_dreams(request, step)
            case LabelRequest(labels=LabelTerms(noisy=None)):
                return self._quantized(self._labels(request), request, step)
            case LabelRequest():
                return self._answer_noisy_labels(request, step, digest(broadcast))
            case StatisticsRequest() | GradientRequest():
                return self._answer_sum(request, step, digest(broadcast))
            case EvaluateRequest():
                return self._answer_evaluation()
            case ModelRequest():
                return self._answer_model(request, step)

    def _check(self, request: AskedOfClient) -> None:
        """Raise RequestRefused for a request outside the rules, or on unknown terms."""
        if self.noisy is not None:
            # The own model may have seen data without noise: nothing of it is ever told.
            if not isinstance(request, GradientRequest | StatisticsRequest):
                raise RequestRefused("this run asks for noisy sums alone")
            return
        if isinstance(request, GradientRequest):
            raise RequestRefused("no noisy gradients in this run")
        if isinstance(request, DreamRequest | LabelRequest):
            self._rules.check(request)
        elif isinstance(request, StatisticsRequest):
            self._check_terms(request)
        elif isinstance(request, ModelRequest):
            if self.messenger is None:
                raise RequestRefused("no common model in this run")
            self.messenger.check(request)

    def _check_terms(self, request: StatisticsRequest) -> None:
        if self._statistics is None or not self._statistics.agrees(request):
            raise RequestRefused("statistics on terms that this client does not know")

    def _charge_noisy(self, request: LabelRequest, asked: NoisyTerms) -> None:
        """Charge one release of noisy labels, before anything of it is computed."""
        length = LabelGrid(request.shape[0], request.labels.classes).length
        if self._releases is None or asked.length != length:
            raise RequestRefused("labels with noise on terms that this client does not know")
        self._releases.take(asked)

    def _attempt(self, compute: Callable[[], Values]) -> Values:
        """Return what a computation over private data gives; nothing if it raises."""
        try:
            return compute()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not show
            self.failed(error)
            return {}

    def _answer_dreams(self, request: DreamRequest, step: int) -> SectionCodes:
        """Return the loss gradient at the dreams, and their labels if these are asked for too."""
        values = dict(self._attempt(lambda: dream_contribution(self.teacher, self._scale, request)))
        self.learner.work.trained += request.shape[0] * request.local.count
        if asked := asked_labels(request):
            values |= self._labels(asked)
        return self._quantized(values, request, step)

    def _answer_model(self, request: ModelRequest, step: int) -> SectionCodes:
        """Train the client's own model and its messenger; return the messenger's change."""
        if (messenger := self.messenger) is None:
            raise ValueError("there is no common model")
        return self._quantized(self._attempt(lambda: messenger.update(request)), request, step)

    def _labels(self, request: LabelRequest) -> Values:
        self.learner.work.inferred += request.shape[0]
        return self._attempt(lambda: label_contribution(self.teacher, self._scale, request))

    def _quantized(
        self, values: Values, request: Request | ModelRequest, step: int
    ) -> SectionCodes:
        """Weight gradients (D2), clip and quantize all sections.

        A section that is missing or has another length is zero, and so is a NaN (SPEC 7.1).
        """
        cap = request.weight_cap if isinstance(request, DreamRequest) else 0
        share = min(self._examples, cap) / cap if cap else 1.0
        answer = {}
        for section in sections(request):
            name = section.name
            numbers = self._usable(values.get(name), section.length)
            answer[name] = Quantizer(section.maximum, section.clip).encode(
                numbers * share if name in _WEIGHTED else numbers,
                seed=self._rounding_seed,
                step=step,
                section=name,
            )
        return answer

    def _usable(self, values: NDArray[np.floating] | None, length: int) -> NDArray[np.floating]:
        """Return the values of a section, or zeros; count the numbers that are not finite."""
        if values is None:
            return np.zeros(length)
        if values.shape != (length,):
            self.failed(ValueError(f"a section of shape {values.shape}, not {(length,)}"))
            return np.zeros(length)
        if found := repairs(values):
            if not self.repaired:
                _log.warning("numbers that are not finite count as 0 or as the clip in answers")
            self.repaired += found
        return values

    def _answer_noisy_labels(self, request: LabelRequest, step: int, seen: bytes) -> SectionCodes:
        """Return the labels of the dreams with this client's share of noise.

        Guarantee:
            What all clients' parts sum to is private for whole clients as `ReleasePlan` says.
        """
        if (releases := self._releases) is None:
            raise ValueError("there are no noisy labels")
        classes = request.labels.classes
        grid = LabelGrid(request.shape[0], classes)
        key = hkdf(self._rounding_seed, "labels", step.to_bytes(8, "big"))
        found = self._usable(self._labels(request).get("labels"), grid.dreams * classes)
        stack = found.astype(np.float64) + (0.5 - 1 / classes)
        integers = grid.integers(stack, rotation(request), key)
        return {"labels": releases.codes(integers, step, seen)}

    def _answer_sum(self, request: NoisyRequest, step: int, asked: bytes) -> SectionCodes:
        """Return a clipped sum over the client's examples, with its share of noise."""
        if (noisy := self.noisy) is None:
            return self._answer_statistics()
        try:
            vector = noisy.vector(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not show
            self.failed(error)
            vector = None  # its share of noise stays in the sum: the noise of the sum counts on it
        name = "gradient" if isinstance(request, GradientRequest) else "statistics"
        return {name: noisy.codes(request, vector, step, asked)}

    def _answer_statistics(self) -> SectionCodes:
        """Return class sums of the client's own examples, with its share of noise."""
        if self._statistics is None:
            raise ValueError("there are no class means")
        statistics = self._statistics
        try:
            return {"statistics": statistics.codes()}
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not show
            self.failed(error)
            # Its share of noise stays in the sum: the noise of the sum counts on it.
            return {"statistics": statistics.noise()}

    def _answer_evaluation(self) -> SectionCodes:
        """Return the model's accuracy and 1, or two zeros; see `EvaluateRequest`."""
        none = {"accuracy": np.zeros(2)}
        found = self._attempt(lambda: none if (a := self.measure()) is None else _hits(a)) or none
        return {"accuracy": found["accuracy"].astype(np.uint32)}

    def state(self) -> ClientState:
        """Return the client's part of a checkpoint, without the teacher, which is copied anew."""
        return ClientState(
            learner=self.learner.state(),
            memory=self.teacher.memory.state(),
            answered=sorted(self._answered),
            messenger=None if self.messenger is None else self.messenger.state(),
        )

    def restore(self, state: ClientState) -> None:
        """Restore the state that `state` returned.

        Raises:
            ValueError, RuntimeError: the state belongs to another client.
        """
        self.learner.restore(state.learner)
        self.teacher.memory.restore(state.memory, self._scale.low.device)
        self._answered = set(state.answered)
        if (self.messenger is None) != (state.messenger is None):
            raise ValueError("a client with a common model is none without")
        if self.messenger is not None and state.messenger is not None:
            self.messenger.restore(state.messenger)


def _raise(error: Exception) -> None:
    raise error


def _hits(accuracy: float) -> Values:
    """Return an accuracy as the integers of an `EvaluateRequest`.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"an accuracy of {accuracy}")
    return {"accuracy": np.array([round(accuracy * EvaluateRequest.SCALE), 1.0])}
