"""One client of a run: its data and model stay here, and only what `answer` returns leaves it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import (
    AskedOfClient,
    DreamRequest,
    EvaluateRequest,
    LabelRequest,
    LabelTerms,
    LocalSteps,
    Request,
    StatisticsRequest,
    Student,
    asked_labels,
    digest,
)
from codream_secure.aggregation.sections import sections
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.feature_statistics import StatisticsMemory
from codream_secure.dreaming.labels import label_contribution
from codream_secure.dreaming.teacher import Teacher, dream_contribution
from codream_secure.errors import RequestRefused
from codream_secure.learning.learner import Learner
from codream_secure.privacy.class_means import OwnClassMeans
from codream_secure.privacy.label_grid import LabelGrid, rotation
from codream_secure.privacy.release_plan import NoisyReleases
from codream_secure.storage.checkpoint import ClientState
from protocols.params import MAX_INPUT
from protocols.primitives.keys import hkdf
from protocols.quantization import CLIP_MAX, CLIP_MIN, Quantizer

# Quantized sections by name.
Answer = Mapping[str, NDArray[np.uint32]]


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """What a client is willing to answer; it refuses the rest before it computes anything.

    Args:
        max_bits: a request for more bits asks for precision that no sum needs.
        max_local_steps: the most steps on the client's own copy of the dreams.
        allow_feature_statistics: False under DP, where BatchNorm's memory is not private.
        allow_weights: False under DP, where the number of examples is private.
        noisy_labels_only: True under client-level DP, where nothing else may be released.
    """

    max_bits: int = 16
    max_local_steps: int = 64
    allow_feature_statistics: bool = True
    allow_weights: bool = True
    noisy_labels_only: bool = False

    def check(self, request: Request) -> None:
        """Raise RequestRefused for a request that these rules exclude."""
        noisy = isinstance(request, LabelRequest) and request.labels.noisy is not None
        if noisy != self.noisy_labels_only:
            raise RequestRefused("labels with noise, and nothing else, go with client-level DP")
        if request.weight_cap and not self.allow_weights:
            raise RequestRefused("the number of examples is private under DP")
        if not 0 <= request.weight_cap <= MAX_INPUT:
            raise RequestRefused(f"weight cap {request.weight_cap} is outside 0..{MAX_INPUT}")
        if isinstance(request, DreamRequest):
            self._check_dreams(request)
        if request.labels is not None:
            self._check_quantizer(request.labels)

    def _check_dreams(self, request: DreamRequest) -> None:
        self._check_quantizer(request)
        if request.student is not None:
            self._check_quantizer(request.student)
        self._check_local(request.local)
        if request.bn_weight != 0 and not self.allow_feature_statistics:
            raise RequestRefused("feature statistics are not private and not answered under DP")

    def _check_quantizer(self, asked: DreamRequest | Student | LabelTerms) -> None:
        # Written so that a NaN is refused: it is neither below nor above a bound.
        if not CLIP_MIN <= asked.clip <= CLIP_MAX:
            raise RequestRefused(f"clip {asked.clip} is outside [{CLIP_MIN}, {CLIP_MAX}]")
        if not 1 <= asked.bits <= self.max_bits:
            raise RequestRefused(f"{asked.bits} bits are outside 1..{self.max_bits}")

    def _check_local(self, local: LocalSteps) -> None:
        if not 1 <= local.count <= self.max_local_steps:
            raise RequestRefused(f"{local.count} local steps are outside 1..{self.max_local_steps}")
        if not 0 < local.size < math.inf:
            raise RequestRefused(f"local steps of size {local.size}")


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

    Attributes:
        teacher: the frozen copy.
        measure: returns the accuracy of its own model, 0..1; None if it has none to tell.
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
    ) -> None:
        self.learner = learner
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
        self._answered: set[bytes] = set()

    def freeze_teacher(self) -> None:
        """Copy the model; the copy answers the requests of this round."""
        self.teacher = dataclasses.replace(self.teacher, model=self.learner.frozen_copy())

    def answer(self, broadcast: bytes, step: int) -> Answer:
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
        request = decode_request(broadcast)
        self._check(request)
        seen = digest(broadcast)
        if seen in self._answered:
            raise RequestRefused("this broadcast was answered before in this session")
        self._answered.add(seen)
        match request:
            case DreamRequest():
                return self._answer_dreams(request, step)
            case LabelRequest(labels=LabelTerms(noisy=None)):
                return self._answer_labels(request, step)
            case LabelRequest():
                return self._answer_noisy_labels(request, step, seen)
            case StatisticsRequest():
                return self._answer_statistics()
            case EvaluateRequest():
                return self._answer_evaluation()

    def _check(self, request: AskedOfClient) -> None:
        """Raise RequestRefused for a request outside the rules, or on unknown terms."""
        if isinstance(request, DreamRequest | LabelRequest):
            self._rules.check(request)
        elif isinstance(request, StatisticsRequest):
            self._check_terms(request)

    def _check_terms(self, request: StatisticsRequest) -> None:
        if self._statistics is None or not self._statistics.agrees(request):
            raise RequestRefused("statistics on terms that this client does not know")

    def _answer_dreams(self, request: DreamRequest, step: int) -> Answer:
        """Return the loss gradient at the dreams, and their labels if these are asked for too."""
        values = dict[str, NDArray[np.floating]](
            dream_contribution(self.teacher, self._scale, request)
        )
        self.learner.work.trained += request.shape[0] * request.local.count
        if asked := asked_labels(request):
            values |= self._labels(asked)
        return self._quantized(values, request, step)

    def _answer_labels(self, request: LabelRequest, step: int) -> Answer:
        """Return soft labels of the dreams, without noise."""
        return self._quantized(self._labels(request), request, step)

    def _labels(self, request: LabelRequest) -> dict[str, NDArray[np.float64]]:
        self.learner.work.inferred += request.shape[0]
        return label_contribution(self.teacher, self._scale, request)

    def _quantized(
        self, values: Mapping[str, NDArray[np.floating]], request: Request, step: int
    ) -> Answer:
        """Weight the values of every section (D2), clip and quantize them."""
        cap = request.weight_cap
        weight = min(self._examples, cap) if cap else 0
        answer = {}
        for section in sections(request):
            if (name := section.name) == "weight":
                answer[name] = np.array([weight], np.uint32)
                continue
            answer[name] = Quantizer(section.maximum, section.clip).encode(
                _weighted(values[name], name, weight, cap),
                seed=self._rounding_seed,
                step=step,
                section=name,
            )
        return answer

    def _answer_noisy_labels(self, request: LabelRequest, step: int, seen: bytes) -> Answer:
        """Return the labels of the dreams with this client's share of noise.

        Guarantee:
            What all clients' parts sum to is private for whole clients as `ReleasePlan` says.
        """
        asked, classes = request.labels.noisy, request.labels.classes
        grid = LabelGrid(request.shape[0], classes)
        if self._releases is None or asked is None or grid.length != asked.length:
            raise RequestRefused("labels with noise on terms that this client does not know")
        # The release is counted before anything of it is computed.
        self._releases.take(asked)
        stack = self._labels(request)["labels"] + (0.5 - 1 / classes)
        key = hkdf(self._rounding_seed, "labels", step.to_bytes(8, "big"))
        integers = grid.integers(stack, rotation(request), key)
        return {"labels": self._releases.codes(integers, step, seen)}

    def _answer_statistics(self) -> Answer:
        """Return class sums of the client's own examples, with its share of noise."""
        if self._statistics is None:
            raise ValueError("there are no class means")
        return {"statistics": self._statistics.codes()}

    def _answer_evaluation(self) -> Answer:
        """Return the model's accuracy and 1, or two zeros; see `EvaluateRequest`."""
        found = self.measure()
        if found is None:
            return {"accuracy": np.zeros(2, np.uint32)}
        return {"accuracy": np.array([round(found * EvaluateRequest.SCALE), 1], np.uint32)}

    def has_answered(self, broadcast: bytes) -> bool:
        """Tell whether a request was answered in this session."""
        return digest(broadcast) in self._answered

    def state(self) -> ClientState:
        """Return the client's part of a checkpoint, without the teacher, which is copied anew."""
        return ClientState(
            learner=self.learner.state(),
            memory=self.teacher.memory.state(),
            answered=sorted(self._answered),
        )

    def restore(self, state: ClientState) -> None:
        """Restore the state that `state` returned.

        Raises:
            ValueError, RuntimeError: the state belongs to another client.
        """
        self.learner.restore(state.learner)
        self.teacher.memory.restore(state.memory, self._scale.low.device)
        self._answered = set(state.answered)


def _weighted(
    values: NDArray[np.floating], section: str, weight: int, cap: int
) -> NDArray[np.floating]:
    """Multiply a contribution by weight / cap (D2); with a cap of 0 all clients count alike.

    Weighted values have the range c * weight / cap but are rounded in steps of the full range c.
    In units of the mean the variance of rounding is at most n W^2 c^2 / (L^2 (sum of weights)^2),
    with L the levels of the quantizer (D20). With even shares of W / 4 this is 16 times the
    variance of equal weights; two more bits make up for it.
    """
    if not cap:
        return values
    share = weight / cap
    # A confidence q is sent as q - 1/2; only q itself is weighted.
    return (values + 0.5) * share - 0.5 if section == "confidence" else values * share
