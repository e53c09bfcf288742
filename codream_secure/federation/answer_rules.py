"""Which requests a client answers."""

import math
from dataclasses import dataclass
from typing import Self

from codream_secure.aggregation.requests import (
    DreamRequest,
    LabelRequest,
    LabelTerms,
    LocalSteps,
    Request,
    Student,
)
from codream_secure.config.resolved import Resolved
from codream_secure.errors import RequestRefused
from protocols.params import MAX_INPUT
from protocols.quantization import CLIP_MAX, CLIP_MIN


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

    @classmethod
    def of(cls, config: Resolved) -> Self:
        """Return the rules of a run; they follow from public settings alone."""
        return cls(
            allow_feature_statistics=not config.private,
            allow_weights=not config.private,
            noisy_labels_only=config.private_clients,
        )

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
