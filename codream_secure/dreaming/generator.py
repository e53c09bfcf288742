"""CoDream-fast: dreams made by a generator, and the meta-generator that each batch starts from.

Generator weights are never sent. Dreams are x = G(z; phi). The server obtains the gradients of
the summed client losses with respect to phi and z from the summed pixel gradient, by the chain
rule and without the clients. A public seed determines the initial z.

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
    """Size of the generator, and step sizes of its training.

    Args:
        latent: length of a latent vector.
        width: channels of the last hidden layer.
        lr: learning rate of Adam for the generator of a dream batch.
        latent_lr: learning rate of Adam for the latent vectors.
        meta: gradient of a meta step: the difference to the adapted generator (reptile) or the
            sum of the gradients that led to it (fomaml).
        meta_lr: learning rate of AdamW for the meta-generator.
        weight_decay: decoupled weight decay of the meta-generator.
        average: batches start from a running average in which old weights have this share;
            0: they start from the meta-generator itself.
        max_norm: the gradient of a batch's generator is clipped to this norm.
        reset_round: the first layer is drawn anew before this round; 0: never.
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
    """One dream batch: a copy of the meta-generator and latent vectors, optimized together.

    Args:
        generator: changed in place.
        latents: float, shape (B, latent).
        scale: the public pixel scale.
        settings: step sizes.
        fits: generator steps for each pseudo-gradient; 1 if gradients are plain ones.
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
        # Sum of all gradients, one tensor for each parameter: the gradient of FO-MAML's meta step.
        self.gradients = [torch.zeros_like(p) for p in generator.parameters()]
        self._dreams = self._images().detach()

    def dreams(self) -> Tensor:
        """Return the current dreams: scaled images, float, shape (B, C, H, W)."""
        return self._dreams

    def descend(self, gradient: Tensor, stride: float) -> bool:
        """Take one or more steps of generator and latents down the mean gradient of the losses.

        With ``fits`` > 1 the gradient is a pseudo-gradient of several local steps. It gives the
        images that the clients reached in the mean, and the generator is fitted to these images
        in ``fits`` steps (D25: approximate).

        Returns:
            False if a dream was not finite and the step was undone.
        """
        before = self._snapshot()
        target = self._scale.clamp(self._dreams - stride * gradient)
        for _ in range(self._fits):
            images = self._images()
            # images - target is the gradient of |images - target|^2 / 2 in the images.
            self._step(images, gradient if self._fits == 1 else images.detach() - target)
        self._dreams = self._images().detach()
        if bool(torch.isfinite(self._dreams).all()):
            return True
        self._restore(before)
        return False

    def _images(self) -> Tensor:
        return self._scale.scale(self.generator(self._latents))

    def _step(self, images: Tensor, gradient: Tensor) -> None:
        """Propagate the images' gradient back through the generator and take one step of Adam."""
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
    """The generator from which the generator of every dream batch starts.

    After each batch it takes one meta step towards weights that make dreams in fewer steps.

    Args:
        spec: shape of an image.
        scale: the public pixel scale; its device is used.
        settings: of generator and meta step.
        seed: determines the initial weights and those of the first layer after its reset.
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
        """Draw the first layer anew in round ``reset_round`` (Fast-Datafree's reset)."""
        if number == self._settings.reset_round:
            fresh = self._fresh(self._seed + 1).first.state_dict()
            for generator in (self._meta, self._average):
                generator.first.load_state_dict(fresh)
            # Adam's moments belong to the weights that are gone.
            for parameter in self._meta.first.parameters():
                self._optimizer.state.pop(parameter, None)

    def batch(self, dreams: int, noise: torch.Generator, *, fits: int) -> GeneratedDreams:
        """Return a new batch of dreams, with latent vectors drawn by ``noise`` (on the CPU)."""
        start = self._average if self._settings.average else self._meta
        latents = torch.randn((dreams, self._settings.latent), generator=noise)
        device = self._scale.low.device
        return GeneratedDreams(
            copy.deepcopy(start), latents.to(device), self._scale, self._settings, fits=fits
        )

    def learn_from(self, batch: GeneratedDreams) -> bool:
        """Take one meta step; return False if its result was not finite and was undone."""
        before = copy.deepcopy((self._meta.state_dict(), self._optimizer.state_dict()))
        adapted = zip(
            self._meta.parameters(), batch.generator.parameters(), batch.gradients, strict=True
        )
        for own, others, summed in adapted:
            reptile = self._settings.meta == "reptile"
            # A step down own - others moves the meta-generator towards the adapted generator.
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
        """Return what a checkpoint stores."""
        return GeneratorState(
            meta=self._meta.state_dict(),
            average=self._average.state_dict(),
            optimizer=optimizer_state(self._optimizer),
        )

    def restore(self, state: GeneratorState) -> None:
        """Restore the state that `state()` returned.

        Raises:
            ValueError, RuntimeError: the state belongs to another generator.
        """
        self._meta.load_state_dict(state.meta)
        self._average.load_state_dict(state.average)
        restore_optimizer(self._optimizer, state.optimizer)

    def _fresh(self, seed: int) -> Generator:
        settings = self._settings
        generator = Generator(self._spec, latent=settings.latent, width=settings.width, seed=seed)
        return generator.to(self._scale.low.device)
