"""The server's side of dreaming: it holds the dreams and learns nothing but sums."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.acquisition import soft_targets
from codream_secure.aggregation import Aggregator
from codream_secure.data.spec import InputSpec
from codream_secure.dreaming.losses import squared_norm, total_variation
from codream_secure.dreaming.pixels import PixelScale
from codream_secure.errors import StepAborted
from codream_secure.messages import VERSION, DreamRequest, LabelKind, LabelRequest
from protocols.quantization import CLIP_START, next_clip

# A label step that was aborted is tried again on dreams that have moved on by one step: clients
# refuse a broadcast that they have answered (D1).
LABEL_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisSettings:
    """Public settings of a synthesis; the weights travel in every request."""

    dreams: int
    dream_steps: int
    dream_lr: float
    bits: int
    entropy_weight: float
    bn_weight: float
    balance_weight: float
    tv_weight: float
    l2_weight: float
    labels: LabelKind
    label_bits: int
    label_clip: float
    kd_temperature: float


@dataclass(frozen=True, slots=True)
class LabelledDreams:
    """What one synthesis yields; all of it is public.

    ``pixels``: uint8, shape (B, C, H, W). ``targets``: float32 probabilities, shape (B, classes).
    """

    pixels: NDArray[np.uint8]
    targets: Tensor


class ClipState:
    """The one public clip of dream gradients, carried from sum to sum (SPEC 7.4)."""

    def __init__(self) -> None:
        self.value = CLIP_START


class DreamSynthesis:
    """One batch of dreams from noise to soft labels (CoDream Algorithm 1, M = 1).

    The dreams stay inside the range of pixels; Adam runs on the securely aggregated mean
    gradient plus the gradient of the server's own priors.

    Args:
        spec: shape of an image and number of classes.
        scale: the public pixel scale.
        settings: public settings.
        clip: read and advanced at every step.
        noise: makes the initial dreams and the dither.
        position: (round, batch), which the requests carry.
    """

    def __init__(
        self,
        spec: InputSpec,
        scale: PixelScale,
        settings: SynthesisSettings,
        *,
        clip: ClipState,
        noise: torch.Generator,
        position: tuple[int, int],
    ) -> None:
        self._spec, self._scale, self._settings = spec, scale, settings
        self._clip, self._noise = clip, noise
        self._round, self._batch = position
        self._shape = (settings.dreams, spec.channels, spec.height, spec.width)
        start = torch.randn(self._shape, generator=noise).to(scale.low.device)
        self._dreams = start.clamp(scale.low, scale.high)
        self._optimizer = torch.optim.Adam([self._dreams], lr=settings.dream_lr)
        self._steps = 0

    def dream_request(self) -> DreamRequest:
        """Return the broadcast of the next dream step."""
        s = self._settings
        return DreamRequest(
            version=VERSION,
            round=self._round,
            batch=self._batch,
            dream_step=self._steps,
            shape=self._shape,
            dreams=self._scale.to_pixels(self._dreams, self._noise).tobytes(),
            bits=s.bits,
            clip=self._clip.value,
            entropy_weight=s.entropy_weight,
            bn_weight=s.bn_weight,
            balance_weight=s.balance_weight,
        )

    def label_request(self) -> LabelRequest:
        """Return the broadcast that asks for labels of the dreams as they are now."""
        s = self._settings
        return LabelRequest(
            version=VERSION,
            round=self._round,
            batch=self._batch,
            shape=self._shape,
            dreams=self._scale.to_pixels(self._dreams, self._noise).tobytes(),
            bits=s.label_bits,
            clip=s.label_clip if s.labels == "logits" else 0.5,
            kind=s.labels,
            temperature=s.kd_temperature,
            classes=self._spec.classes,
        )

    def dream_step(self, aggregator: Aggregator) -> bool:
        """Ask for one summed gradient and move the dreams; False if the step was aborted."""
        request = self.dream_request()
        self._steps += 1
        try:
            answer = aggregator.sum(request)
        except StepAborted:
            return False
        mean = answer.mean("gradient")
        self._clip.value = next_clip(answer.quantizer("gradient"), mean, answer.count)
        gradient = torch.from_numpy(mean.astype(np.float32)).reshape(self._shape)
        self._descend(gradient.to(self._dreams.device))
        return True

    def _descend(self, gradient: Tensor) -> None:
        self._dreams.grad = gradient + self._prior_gradient()
        self._optimizer.step()
        self._dreams.clamp_(self._scale.low, self._scale.high)

    def _prior_gradient(self) -> Tensor:
        """Return the gradient of B * (w_tv * TV + w_l2 * L2): no client is asked for it."""
        s = self._settings
        if not (s.tv_weight or s.l2_weight):
            return torch.zeros_like(self._dreams)
        leaf = self._dreams.detach().clone().requires_grad_()
        prior = s.tv_weight * total_variation(leaf) + s.l2_weight * squared_norm(leaf)
        (gradient,) = torch.autograd.grad(len(leaf) * prior, leaf)
        return gradient

    def label(self, aggregator: Aggregator) -> LabelledDreams | None:
        """Ask for the summed labels of the finished dreams; None if all attempts were aborted."""
        for attempt in range(LABEL_ATTEMPTS):
            if attempt:
                self.dream_step(aggregator)
            request = self.label_request()
            try:
                answer = aggregator.sum(request)
            except StepAborted:
                continue
            pixels = np.frombuffer(request.dreams, np.uint8).reshape(self._shape)
            return LabelledDreams(pixels, soft_targets(answer.mean("labels"), request))
        return None
