"""Dreams that a generator makes, and the meta-generator that learns to make them fast.

CoDream-fast, but no generator weight ever travels: dreams are x = G(z; phi), and the gradients
of the summed client losses with respect to phi and z follow from the summed pixel gradient by
the chain rule, which the server computes alone. z comes from a public seed.

Source: Fang et al., Up to 100x Faster Data-Free Knowledge Distillation, AAAI-22; CoDream section
"fast"; exact for one local step, before quantization (D25).
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec
from codream_secure.models.generator import Generator
from codream_secure.storage.checkpoint import GeneratorState, optimizer_state, restore_optimizer

MetaUpdate = Literal["reptile", "fomaml"]

_BETAS = (0.5, 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings:
    """How the generator is built and moved.

    Args:
        latent: numbers in a latent vector.
        width: channels of its last hidden layer.
        lr: Adam's step size on a batch's generator.
        latent_lr: Adam's step size on latent vectors.
        meta: what the meta-generator follows: the way to the adapted generator (reptile) or the
            sum of the gradients on that way (fomaml).
        meta_lr: Adam's step size on the meta-generator.
        weight_decay: decoupled, of the meta-generator.
        average: share of the old weights in the running average that batches start from; 0: none.
        max_norm: gradients of a batch's generator are clipped to this norm.
        reset_round: round before which the first layer is drawn anew, once; 0: never.
    """

    latent: int
    width: int
    lr: float
    latent_lr: float
    meta: MetaUpdate
    meta_lr: float
    weight_decay: float
    average: float
    max_norm: float
    reset_round: int


class GeneratedDreams:
    """One batch: a copy of the meta-generator and latent vectors, moved together.

    Args:
        generator: moved in place.
        latents: float, shape (B, latent).
        scale: the public pixel scale.
        settings: step sizes.
        fits: generator steps for one pseudo-gradient; 1 for a plain gradient.
    """

    def __init__(
        self,
        generator: Generator,
        latents: Tensor,
        scale: PixelScale,
        settings: GeneratorSettings,
        *,
        fits: int,
    ) -> None:
        self.generator = generator
        self._latents = latents.requires_grad_()
        self._scale, self._settings, self._fits = scale, settings, fits
        self._optimizer = torch.optim.Adam(
            [
                {"params": list(generator.parameters()), "lr": settings.lr},
                {"params": [self._latents], "lr": settings.latent_lr},
            ],
            betas=_BETAS,
        )
        # FO-MAML's sum of gradients, one tensor a parameter.
        self.gradients = [torch.zeros_like(p) for p in generator.parameters()]
        self._dreams = self._images().detach()

    def dreams(self) -> Tensor:
        """Return the dreams as they are now: scaled images, shape (B, C, H, W)."""
        return self._dreams

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Move generator and latents along the gradient of the summed losses.

        A pseudo-gradient of several local steps says where the clients would have the dreams; the
        generator is then fitted to these images in as many steps (D25: approximate).
        """
        before = self._snapshot()
        target = self._scale.clamp(self._dreams - stride * gradient)
        for _ in range(self._fits):
            images = self._images()
            self._step(images, gradient if self._fits == 1 else images.detach() - target)
        self._dreams = self._images().detach()
        if bool(torch.isfinite(self._dreams).all()):
            return True
        self._restore(before)
        return False

    def _images(self) -> Tensor:
        return self._scale.scale(self.generator(self._latents))

    def _step(self, images: Tensor, gradient: Tensor) -> None:
        """Apply the chain rule through the generator, and Adam."""
        self._optimizer.zero_grad()
        images.backward(gradient)  # type: ignore[no-untyped-call]
        parameters = list(self.generator.parameters())
        torch.nn.utils.clip_grad_norm_(parameters, self._settings.max_norm)
        for total, parameter in zip(self.gradients, parameters, strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad)
        self._optimizer.step()

    def _snapshot(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "generator": self.generator.state_dict(),
                "latents": self._latents.detach(),
                "optimizer": self._optimizer.state_dict(),
                "gradients": self.gradients,
                "dreams": self._dreams,
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        with torch.no_grad():
            self._latents.copy_(state["latents"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.gradients, self._dreams = state["gradients"], state["dreams"]


class MetaGenerator:
    """Where every batch's generator starts; it follows where they end.

    Args:
        spec: shape of an image.
        scale: the public pixel scale; decides the device.
        settings: of generator and meta update.
        seed: of the first weights and of the layer that is drawn anew.
    """

    def __init__(
        self, spec: InputSpec, scale: PixelScale, settings: GeneratorSettings, *, seed: int
    ) -> None:
        self._spec, self._scale, self._settings, self._seed = spec, scale, settings, seed
        self._meta = self._fresh(seed)
        self._average = copy.deepcopy(self._meta)
        self._optimizer = torch.optim.AdamW(
            self._meta.parameters(),
            lr=settings.meta_lr,
            betas=_BETAS,
            weight_decay=settings.weight_decay,
        )

    def begin_round(self, number: int) -> None:
        """Draw the first layer anew if this is the round for it (Fast-Datafree's reset)."""
        if number == self._settings.reset_round:
            fresh = self._fresh(self._seed + 1).first.state_dict()
            for generator in (self._meta, self._average):
                generator.first.load_state_dict(fresh)
            for parameter in self._meta.first.parameters():
                self._optimizer.state.pop(parameter, None)

    def batch(self, dreams: int, noise: torch.Generator, *, fits: int) -> GeneratedDreams:
        """Start a batch of dreams from latent vectors that ``noise`` draws."""
        start = self._average if self._settings.average else self._meta
        latents = torch.randn((dreams, self._settings.latent), generator=noise)
        device = self._scale.low.device
        return GeneratedDreams(
            copy.deepcopy(start), latents.to(device), self._scale, self._settings, fits=fits
        )

    def learn_from(self, batch: GeneratedDreams) -> bool:
        """Take one meta step; False if the result was not finite and was taken back."""
        before = copy.deepcopy((self._meta.state_dict(), self._optimizer.state_dict()))
        adapted = zip(
            self._meta.parameters(), batch.generator.parameters(), batch.gradients, strict=True
        )
        for own, others, summed in adapted:
            reptile = self._settings.meta == "reptile"
            own.grad = own.detach() - others.detach() if reptile else summed.clone()
        self._optimizer.step()
        finite = all(bool(torch.isfinite(p).all()) for p in self._meta.parameters())
        if not finite:
            self._meta.load_state_dict(before[0])
            self._optimizer.load_state_dict(before[1])
            return False
        with torch.no_grad():
            for average, own in zip(
                self._average.parameters(), self._meta.parameters(), strict=True
            ):
                average.lerp_(own, 1 - self._settings.average)
        return True

    def state(self) -> GeneratorState:
        """Return what a checkpoint holds of it."""
        return GeneratorState(
            meta=self._meta.state_dict(),
            average=self._average.state_dict(),
            optimizer=optimizer_state(self._optimizer),
        )

    def restore(self, state: GeneratorState) -> None:
        """Become what it was.

        Raises:
            ValueError, RuntimeError: the state is that of another generator.
        """
        self._meta.load_state_dict(state.meta)
        self._average.load_state_dict(state.average)
        restore_optimizer(self._optimizer, state.optimizer)

    def _fresh(self, seed: int) -> Generator:
        settings = self._settings
        generator = Generator(self._spec, latent=settings.latent, width=settings.width, seed=seed)
        return generator.to(self._scale.low.device)
