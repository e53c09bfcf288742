"""One data holder: everything here stays with it, except what `answer` returns."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.aggregation.requests import (
    DreamRequest,
    EvaluateRequest,
    LabelRequest,
    LocalSteps,
    NoisyTerms,
    Request,
    StatisticsRequest,
    asked_labels,
    decode_request,
    digest,
    sections,
)
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.feature_statistics import StatisticsMemory
from codream_secure.dreaming.labels import label_contribution
from codream_secure.dreaming.teacher import Teacher, dream_contribution
from codream_secure.errors import RequestRefused
from codream_secure.learning.learner import Learner
from codream_secure.privacy.class_means import OwnClassMeans
from codream_secure.privacy.client_labels import LabelGrid, rotation
from codream_secure.privacy.release_plan import NoisyReleases
from codream_secure.storage.checkpoint import ClientState
from protocols.params import MAX_INPUT
from protocols.primitives.keys import hkdf
from protocols.quantization import CLIP_MAX, CLIP_MIN, Quantizer


@dataclass(frozen=True, slots=True)
class Policy:
    """What a client is willing to answer. The rest is refused before anything is computed.

    Args:
        max_bits: more bits than this would send needless precision.
        max_local_steps: the most steps on an own copy of the dreams.
        allow_feature_statistics: False under DP, where BatchNorm memory is not private.
        allow_weights: False under DP, where the number of examples is private.
        noisy_labels_only: True under client-level DP, where nothing else may be released.
    """

    max_bits: int = 16
    max_local_steps: int = 64
    allow_feature_statistics: bool = True
    allow_weights: bool = True
    noisy_labels_only: bool = False

    def check(self, request: Request) -> None:
        """Raise RequestRefused for a request outside the policy."""
        noisy = isinstance(request, LabelRequest) and request.noisy is not None
        if noisy != self.noisy_labels_only:
            raise RequestRefused("labels with noise, and nothing else, go with client-level DP")
        self._check_quantizer(request.bits, request.clip)
        if request.weight_cap and not self.allow_weights:
            raise RequestRefused("the number of examples is private under DP")
        if not 0 <= request.weight_cap <= MAX_INPUT:
            raise RequestRefused(f"weight cap {request.weight_cap} is outside 0..{MAX_INPUT}")
        if isinstance(request, DreamRequest):
            for asked in (request.student, request.labels):
                if asked is not None:
                    self._check_quantizer(asked.bits, asked.clip)
            self._check_local(request.local)
            if request.bn_weight != 0 and not self.allow_feature_statistics:
                raise RequestRefused("feature statistics are not private and not answered under DP")

    def _check_quantizer(self, bits: int, clip: float) -> None:
        if not CLIP_MIN <= clip <= CLIP_MAX:
            raise RequestRefused(f"clip {clip} is outside [{CLIP_MIN}, {CLIP_MAX}]")
        if not 1 <= bits <= self.max_bits:
            raise RequestRefused(f"{bits} bits are outside 1..{self.max_bits}")

    def _check_local(self, local: LocalSteps) -> None:
        if not 1 <= local.count <= self.max_local_steps:
            raise RequestRefused(f"{local.count} local steps are outside 1..{self.max_local_steps}")
        if not 0 < local.size < math.inf:
            raise RequestRefused(f"local steps of size {local.size}")


class Client:
    """Answers requests from a frozen copy of its model.

    Args:
        learner: the client's model and data.
        scale: the public pixel scale.
        rounding_seed: 32 secret bytes that key the rounding stream.
        policy: what it answers.
        statistics: what it releases of its own examples, and on which terms; None: nothing.
        releases: its share of noise in label sums, under client-level DP.
        examples: how many it has; tells its weight where weights are asked for.
        offset: added to its teacher's logits; never given under DP (see `prior_offset`).

    Attributes:
        teacher: the frozen copy.
        measure: gives its own model's accuracy, in [0, 1]; None if it has none to tell.
    """

    def __init__(
        self,
        learner: Learner,
        scale: PixelScale,
        rounding_seed: bytes,
        policy: Policy,
        *,
        statistics: OwnClassMeans | None = None,
        releases: NoisyReleases | None = None,
        examples: int = 1,
        offset: Tensor | None = None,
    ) -> None:
        self.learner = learner
        self._scale = scale
        self._rounding_seed = rounding_seed
        self._policy = policy
        self._statistics = statistics
        self._releases = releases
        self._examples = examples
        self.teacher = Teacher(learner.frozen_copy(), StatisticsMemory(), offset, bf16=learner.bf16)
        self.measure: Callable[[], float | None] = lambda: None
        self._answered: set[bytes] = set()

    def freeze_teacher(self) -> None:
        """Take a new frozen copy of the model; dreams of this round are asked of the copy."""
        self.teacher = dataclasses.replace(self.teacher, model=self.learner.frozen_copy())

    def answer(self, broadcast: bytes, step: int) -> Mapping[str, NDArray[np.uint32]]:
        """Compute, clip and quantize what a request asks for; what leaves is to be masked.

        Args:
            broadcast: the encoded request.
            step: protocol step; selects the rounding stream.

        Returns:
            section name to uint32 codes.

        Raises:
            RequestRefused: malformed, outside the policy, or a broadcast that was already
                answered in this session (D1).
        """
        request = decode_request(broadcast)
        if isinstance(request, DreamRequest | LabelRequest):
            self._policy.check(request)
        elif isinstance(request, StatisticsRequest) and not self._agrees(request):
            raise RequestRefused("statistics on terms that this client does not know")
        seen = digest(broadcast)
        if seen in self._answered:
            raise RequestRefused("this broadcast was answered before in this session")
        self._answered.add(seen)
        if isinstance(request, StatisticsRequest):
            return {"statistics": self._released()}
        if isinstance(request, EvaluateRequest):
            return {"accuracy": self._accuracy()}
        if isinstance(request, LabelRequest) and request.noisy is not None:
            return {"labels": self._noisy_labels(request, request.noisy, step, seen)}
        values: dict[str, NDArray[np.floating]] = {}
        if isinstance(request, DreamRequest):
            values |= dream_contribution(self.teacher, self._scale, request)
            self.learner.work.trained += request.shape[0] * request.local.count
        if asked := asked_labels(request):
            values |= label_contribution(self.teacher, self._scale, asked)
            self.learner.work.inferred += request.shape[0]
        weight = min(self._examples, request.weight_cap) if request.weight_cap else 0
        return {
            section.name: np.array([weight], np.uint32)
            if section.name == "weight"
            else Quantizer(section.maximum, section.clip).encode(
                _weighted(values[section.name], section.name, weight, request.weight_cap),
                seed=self._rounding_seed,
                step=step,
                section=section.name,
            )
            for section in sections(request)
        }

    def _noisy_labels(
        self, request: LabelRequest, asked: NoisyTerms, step: int, seen: bytes
    ) -> NDArray[np.uint32]:
        """Return the labels of the dreams with this client's share of noise.

        Guarantee:
            What all clients' parts sum to is private for whole clients as `ReleasePlan` says.
        """
        grid = LabelGrid(request.shape[0], request.classes)
        if self._releases is None or grid.length != asked.length:
            raise RequestRefused("labels with noise on terms that this client does not know")
        self._releases.take(asked)
        self.learner.work.inferred += request.shape[0]
        values = label_contribution(self.teacher, self._scale, request)["labels"]
        stack = values + (0.5 - 1 / request.classes)
        key = hkdf(self._rounding_seed, "labels", step.to_bytes(8, "big"))
        integers = grid.integers(stack, rotation(request), key)
        return self._releases.codes(integers, step, seen)

    def _accuracy(self) -> NDArray[np.uint32]:
        """Return what `EvaluateRequest` asks for."""
        found = self.measure()
        if found is None:
            return np.zeros(2, np.uint32)
        return np.array([round(found * EvaluateRequest.SCALE), 1], np.uint32)

    def _agrees(self, request: StatisticsRequest) -> bool:
        return self._statistics is not None and self._statistics.agrees(request)

    def _released(self) -> NDArray[np.uint32]:
        if self._statistics is None:
            raise ValueError("there are no statistics")
        return self._statistics.codes()

    def has_answered(self, broadcast: bytes) -> bool:
        """Tell whether a request was answered in this session."""
        return digest(broadcast) in self._answered

    def state(self) -> ClientState:
        """Return what a checkpoint holds of it; the teacher is copied anew every round."""
        return ClientState(
            learner=self.learner.state(),
            memory=self.teacher.memory.state(),
            answered=sorted(self._answered),
        )

    def restore(self, state: ClientState) -> None:
        """Become what it was.

        Raises:
            ValueError, RuntimeError: the state is that of another client.
        """
        self.learner.restore(state.learner)
        self.teacher.memory.restore(state.memory, self._scale.low.device)
        self._answered = set(state.answered)


def _weighted(
    values: NDArray[np.floating], section: str, weight: int, cap: int
) -> NDArray[np.floating]:
    """Multiply a contribution by weight / cap (D2); equal weights change nothing.

    Weighted values have range c * weight / cap, but are rounded in steps of the full range: over
    the mean's scale the variance of rounding is at most n W^2 c^2 / (L^2 (sum of weights)^2), L
    the quantizer's levels (D20). With an even share of W / 4 that is the equal-weight variance
    times 16: two more bits make up for it.
    """
    if not cap:
        return values
    share = weight / cap
    # Confidences are sent less 1/2, which is no part of what is weighted.
    return (values + 0.5) * share - 0.5 if section == "confidence" else values * share
