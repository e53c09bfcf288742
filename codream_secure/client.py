"""One data holder: everything here stays with it, except what `answer` returns."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.acquisition import label_contribution
from codream_secure.dreaming.pixels import PixelScale
from codream_secure.dreaming.teacher import LossWeights, dream_gradient
from codream_secure.errors import RequestRefused
from codream_secure.learner import Learner
from codream_secure.messages import (
    DreamRequest,
    Request,
    decode_request,
    digest,
    pixels,
    sections,
)
from protocols.quantization import CLIP_MAX, CLIP_MIN, Quantizer


@dataclass(frozen=True, slots=True)
class Policy:
    """What a client is willing to answer. The rest is refused before anything is computed.

    Args:
        max_bits: more bits than this would send needless precision.
        allow_feature_statistics: False under DP, where BatchNorm memory is not private.
    """

    max_bits: int = 16
    allow_feature_statistics: bool = True

    def check(self, request: Request) -> None:
        """Raise RequestRefused for a request outside the policy."""
        if not CLIP_MIN <= request.clip <= CLIP_MAX:
            raise RequestRefused(f"clip {request.clip} is outside [{CLIP_MIN}, {CLIP_MAX}]")
        if not 1 <= request.bits <= self.max_bits:
            raise RequestRefused(f"{request.bits} bits are outside 1..{self.max_bits}")
        asks = isinstance(request, DreamRequest) and request.bn_weight != 0
        if asks and not self.allow_feature_statistics:
            raise RequestRefused("feature statistics are not private and not answered under DP")


class Client:
    """Answers requests from a frozen copy of its model.

    Args:
        learner: the client's model and data.
        scale: the public pixel scale.
        rounding_seed: 32 secret bytes that key the rounding stream.
        policy: what it answers.
    """

    def __init__(
        self, learner: Learner, scale: PixelScale, rounding_seed: bytes, policy: Policy
    ) -> None:
        self.learner = learner
        self._scale = scale
        self._rounding_seed = rounding_seed
        self._policy = policy
        self._teacher = learner.frozen_copy()
        self._answered: set[bytes] = set()

    def freeze_teacher(self) -> None:
        """Take a new frozen copy of the model; dreams of this round are asked of the copy."""
        self._teacher = self.learner.frozen_copy()

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
        self._policy.check(request)
        seen = digest(broadcast)
        if seen in self._answered:
            raise RequestRefused("this broadcast was answered before in this session")
        self._answered.add(seen)
        (section,) = sections(request)
        codes = Quantizer(section.bits, section.clip).encode(
            self._contribution(request), seed=self._rounding_seed, step=step, section=section.name
        )
        return {section.name: codes}

    def _contribution(self, request: Request) -> NDArray[np.floating]:
        dreams: Tensor = self._scale.from_pixels(pixels(request))
        if isinstance(request, DreamRequest):
            weights = LossWeights(
                entropy=request.entropy_weight,
                feature_statistics=request.bn_weight,
                class_balance=request.balance_weight,
            )
            gradient: NDArray[np.float32] = (
                dream_gradient(self._teacher, dreams, weights).cpu().numpy()
            )
            return gradient
        return label_contribution(self._teacher, dreams, request)
