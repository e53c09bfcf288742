"""Which requests a client answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import msgspec

from codream_secure.aggregation.requests import (
    DreamRequest,
    LabelRequest,
    LabelTerms,
    LocalSteps,
    Request,
    Student,
)
from codream_secure.config.resolved import Resolved
from codream_secure.data.spec import InputSpec
from codream_secure.dreaming.group import synthesis_settings, weight_cap
from codream_secure.dreaming.server_terms import SynthesisSettings
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
        noisy_labels_only: True under client-level DP, where nothing else may be released.
        agreed: the settings of the run; requests that say anything else are refused. None: the
            other rules alone hold.
        shape: of the dreams of one request in such a run, (B, C, H, W).
        adaptive: whether the run has adaptive teaching.
        gradients: whether the run asks for gradients at all.
    """

    max_bits: int = 16
    max_local_steps: int = 64
    allow_feature_statistics: bool = True
    noisy_labels_only: bool = False
    agreed: SynthesisSettings | None = None
    shape: tuple[int, int, int, int] = (0, 0, 0, 0)
    adaptive: bool = False
    gradients: bool = True

    @classmethod
    def of(cls, config: Resolved, spec: InputSpec, share: int) -> Self:
        """Return the rules of a run; they follow from public settings alone.

        Args:
            config: settings of the run.
            spec: shape of an image and number of classes.
            share: examples of a client if they were dealt evenly.
        """
        dream = config.dream
        batches = dream.dream_batches if dream.parallel_batches else 1
        return cls(
            allow_feature_statistics=not config.private,
            noisy_labels_only=config.private_clients,
            agreed=synthesis_settings(config, spec, weight_cap(config, share), batches=batches),
            shape=(dream.dreams * batches, spec.channels, spec.height, spec.width),
            adaptive=dream.adaptive != "none",
            gradients=not config.has_common_model,
        )

    def check(self, request: Request) -> None:
        """Raise RequestRefused for a request that these rules exclude."""
        noisy = isinstance(request, LabelRequest) and request.labels.noisy is not None
        if noisy != self.noisy_labels_only:
            raise RequestRefused("labels with noise, and nothing else, go with client-level DP")
        if isinstance(request, DreamRequest):
            if not self.gradients:
                raise RequestRefused("this run asks for no gradients")
            if not 0 <= request.weight_cap <= MAX_INPUT:
                raise RequestRefused(f"weight cap {request.weight_cap} is outside 0..{MAX_INPUT}")
            self._check_dreams(request)
        if request.labels is not None:
            self._check_quantizer(request.labels)
        if self.agreed is not None:
            self._check_agreed(request, self.agreed)

    def _check_agreed(self, request: Request, agreed: SynthesisSettings) -> None:
        """Refuse what the run's settings do not say: a server could ask each time for more."""
        expected: dict[str, object] = {"shape": self.shape, "batches": agreed.batches}
        expected["statistics_momentum"] = agreed.statistics_momentum
        if isinstance(request, DreamRequest):
            expected |= agreed.of_dreams
            if request.student is not None:
                _check_fields(request.student, agreed.of_student, "student's ")
                if not self.adaptive:
                    raise RequestRefused("the run has no adaptive teaching")
        _check_fields(request, expected)
        if request.labels is not None:
            terms = agreed.of_labels(request.labels.noisy)
            _check_fields(request.labels, msgspec.structs.asdict(terms), "labels' ")

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


def _check_fields(request: object, expected: Mapping[str, object], whose: str = "") -> None:
    for name, value in expected.items():
        if (found := getattr(request, name)) != value:
            raise RequestRefused(f"{whose}{name} {found} is not the run's, which is {value}")
