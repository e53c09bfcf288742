"""DP-SGD of a local model: Opacus' hooks and clipping, our source of randomness."""

import copy
import math
import secrets
import textwrap
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.integer_gradients import GradientGrid
from codream_secure.privacy.integer_noise import IntegerNoise
from codream_secure.storage.checkpoint import NoiseState
from protocols.primitives.keys import hkdf


def check_private_model(model: nn.Module) -> None:
    """Refuse a model whose per-example gradients are not per example.

    Opacus' validator looks at trainable layers by exact type only: a frozen BatchNorm, one
    without affine parameters or a subclass passes it, and still learns batch statistics. A layer
    of one's own whose `forward` mixes examples is for `check_private_step` to find.

    Args:
        model: in training or evaluation mode, which it keeps.

    Raises:
        UserError: names the layer and the way out.
    """
    for name, layer in model.named_modules():
        is_batch_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
        if is_batch_norm or getattr(layer, "track_running_stats", False):
            raise UserError(
                f"layer {name or type(layer).__name__!r} keeps batch statistics, which are not "
                "private; put GroupNorm in its place (--norm group, in models of this package)"
            )
    errors = _opacus_errors(model)
    if errors:
        raise UserError(f"the model cannot be trained with DP-SGD: {errors[0]}")


_PROBE = 3


def check_private_step(model: nn.Module, spec: InputSpec) -> None:
    """Try per-example gradients on random images, on a copy: for a user's own architecture.

    What depends on the images drawn, such as mixing examples above a threshold, can pass.

    Args:
        model: passes `check_private_model`; on any device.
        spec: shape of an image, and the number of classes.

    Raises:
        UserError: one example's logits depend on another example, or Opacus cannot compute
            per-example gradients.
    """
    tried = copy.deepcopy(model).train()
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(0)
    shape = (_PROBE, spec.channels, spec.height, spec.width)
    images = torch.randn(shape, generator=draw).to(device).requires_grad_()
    try:
        mixing = torch.autograd.grad(tried(images)[0].sum(), images)[0][1:].abs().max() > 0
        _per_example_gradients(tried, images)
    except Exception as error:  # of Opacus, or the user's code under its hooks
        text = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        if "modified inplace" in text:
            text = _in_place(model)
        raise UserError(f"the model cannot be trained with DP-SGD: {text}") from error
    if mixing:
        raise UserError(
            "the model cannot be trained with DP-SGD: one example's logits depend on another "
            "example; let every layer treat examples apart"
        )


def _in_place(model: nn.Module) -> str:
    """Return which layers change their input, and the way out."""
    names = [name for name, layer in model.named_modules() if getattr(layer, "inplace", False)]
    where = f"layer {names[0]!r} changes" if names else "its forward changes"
    return (
        f"{where} a layer's output in place, where hooks still need it; give it inplace=False, "
        "and write out = out + x, not out += x"
    )


def _per_example_gradients(model: nn.Module, images: Tensor) -> None:
    hooked = GradSampleModule(model, loss_reduction="sum")
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    loss = F.cross_entropy(hooked(images), labels, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        sampled = getattr(parameter, "grad_sample", None)
        if parameter.requires_grad and (not isinstance(sampled, Tensor) or len(sampled) != _PROBE):
            raise ValueError(f"parameter {name} gets no gradient for each example")


def _opacus_errors(model: nn.Module) -> list[Exception]:
    mode = model.training
    model.training = True  # Opacus refuses any model in evaluation mode; `step` sets the mode
    try:
        unsupported = ModuleValidator.validate(model, strict=False)
        return [*unsupported, *GradSampleModule.validate(model, strict=False)]
    finally:
        model.training = mode


def randomness(seed: int | None) -> np.random.Generator:
    """Return the generator of noise and Poisson draws.

    Args:
        seed: for experiments; None takes Philox' whole key, 128 bits, from the operating system.
            (A CPU torch.Generator would use 32 bits of its seed.)

    Returns:
        A Philox generator. It is fully keyed but no cryptographic sampler, and its normals are
        floating-point numbers (Mironov, CCS 2012): limits that SECURITY.md states.
    """
    if seed is None:
        return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


class _Optimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with noise from a fully keyed generator.

    Guarantee:
        One example moves the clipped sum by at most ``clip`` (up to float32 rounding), whatever
        it contains: a gradient without a finite norm, which Opacus' clipping would turn into NaN
        in every weight and so into a release that no noise hides, counts as zero.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip: float,
        expected_batch: float,
        draw: np.random.Generator,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=expected_batch,
            loss_reduction="mean",
        )
        self._draw = draw

    def clip_and_accumulate(self) -> None:
        """Store the sum of clipped per-example gradients in ``p.summed_grad``."""
        gradients = self.grad_samples
        rows = [g.reshape(len(g), p.numel()) for p, g in zip(self.params, gradients, strict=True)]
        # By norms, as clipping sees them: looking at every number takes longer than the step.
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in rows]).norm(dim=0)
        broken = ~norms.isfinite()
        if broken.any():
            for g in gradients:
                g[broken] = 0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Store clipped sum plus N(0, (noise_multiplier * clip)^2) in ``p.grad``."""
        std = self.noise_multiplier * self.max_grad_norm
        for p in self.params:
            normal = self._draw.standard_normal(p.shape, dtype=np.float32)
            noise = torch.from_numpy(np.asarray(normal)).to(p.summed_grad)
            p.grad = (p.summed_grad + std * noise).view_as(p)


class _IntegerOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with gradients and noise in integers.

    Guarantee:
        One example moves the sum by at most ``grid.l2`` exactly, and the noise is discrete Gaussian
        of at least (noise_multiplier * grid.l2)^2, from AES-CTR under a key of the step's own: what
        `IntegerNoise` says is all that its sampler gives away. At full batch a step costs no
        more than the Gaussian mechanism does by RDP (Canonne, Kamath, Steinke 2020, Theorem 4).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip: float,
        expected_batch: float,
        key: bytes,
        budget: PrivacyBudget,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=expected_batch,
            loss_reduction="mean",
        )
        self._grid = GradientGrid(sum(p.numel() for p in self.params), clip)
        variance = math.ceil((noise_multiplier * self._grid.l2) ** 2)
        self._noise = IntegerNoise.of("gaussian", variance)
        self._key, self._budget = key, budget
        self._total = np.zeros(0, np.int64)

    def clip_and_accumulate(self) -> None:
        """Keep the sum of truncated per-example gradients."""
        self._total = self._grid.sum(self.grad_samples)

    def add_noise(self) -> None:
        """Store integers plus integer noise, back in real units, in ``p.grad``."""
        step = self._budget.steps_taken.to_bytes(8, "big")
        noisy = self._total + self._noise.draw(self._total.size, hkdf(self._key, "noise", step))
        flat = torch.from_numpy((noisy / self._grid.scale).astype(np.float32))
        parts = torch.split(flat, [p.numel() for p in self.params])
        for p, part in zip(self.params, parts, strict=True):
            p.grad = part.reshape(p.shape).to(p.device)


class PrivateTrainer:
    """Trains one model by DP-SGD (Abadi et al., CCS 2016).

    Args:
        model: trained in place; must pass `check_private_model`.
        clip: L2 bound C of one example's gradient.
        noise_multiplier: standard deviation of the noise over C.
        sampling_rate: Poisson rate q, public.
        expected_batch: the public denominator of the sum. Never q times the client's own number
            of examples: that number is private when examples are added or removed.
        learning_rate: of SGD.
        budget: charged before every step.
        seed: None takes noise and draws from the operating system.
        integers: sum and noise in exact integers; at sampling rate 1 alone.

    Raises:
        UserError: the model cannot be trained privately.

    Guarantee:
        ``steps`` calls of `step` are the T-fold composition of the Poisson-sampled Gaussian
        mechanism with sensitivity C (adding or removing one example) and noise multiplier as
        given, or with ``integers`` of the discrete one; ``budget`` bounds T. What else is done to
        ``model`` between steps must not depend on private data (distillation on dreams does not).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        clip: float,
        noise_multiplier: float,
        sampling_rate: float,
        expected_batch: float,
        learning_rate: float,
        budget: PrivacyBudget,
        seed: int | None,
        integers: bool = False,
    ) -> None:
        check_private_model(model)
        if integers and sampling_rate != 1:
            raise ValueError("integer noise has no bound for sampled batches here")
        self.model = model
        self._budget = budget
        self.sampling_rate = sampling_rate
        self._draw = randomness(seed)
        self._seeded = seed is not None
        # Hooks are on inside `step` alone: outside it the model is an ordinary module, so that
        # public training leaves no per-example gradients and copies carry no hooks.
        self._hooked = GradSampleModule(model.train(), loss_reduction="sum")
        self._hooked.remove_hooks()
        sgd = torch.optim.SGD(model.parameters(), lr=learning_rate)
        self._optimizer: DPOptimizer = (
            _IntegerOptimizer(
                sgd,
                noise_multiplier=noise_multiplier,
                clip=clip,
                expected_batch=expected_batch,
                key=self._draw.bytes(32) if self._seeded else secrets.token_bytes(32),
                budget=budget,
            )
            if integers
            else _Optimizer(
                sgd,
                noise_multiplier=noise_multiplier,
                clip=clip,
                expected_batch=expected_batch,
                draw=self._draw,
            )
        )

    def step(self, x: Tensor, y: Tensor) -> None:
        """Draw a Poisson batch of the client's examples and take one noisy step.

        An empty draw takes the step with noise alone.

        Args:
            x: all local images, scaled, float32, shape (N, C, H, W).
            y: their labels, int64, shape (N,).

        Raises:
            BudgetExhausted: all steps are spent; nothing was computed.
        """
        self._budget.charge()
        self.model.train()  # Opacus' hooks do nothing in evaluation mode
        drawn = torch.from_numpy(self._draw.random(len(y)) < self.sampling_rate).to(x.device)
        # A full backward hook wants an input with a gradient.
        batch = x[drawn].requires_grad_()
        self._optimizer.zero_grad()
        self._hooked.add_hooks(loss_reduction="sum", batch_first=True)
        try:
            loss = F.cross_entropy(self._hooked(batch), y[drawn], reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        finally:
            self._hooked.remove_hooks()
            self._forget_batch()

    def noise_state(self) -> NoiseState | None:
        """Return how far seeded noise has come; None for noise of the operating system."""
        if not self._seeded:
            return None
        state: Any = self._draw.bit_generator.state
        return NoiseState(
            counter=tuple(state["state"]["counter"].tolist()),
            buffer=tuple(state["buffer"].tolist()),
            buffer_pos=state["buffer_pos"],
            has_uint32=state["has_uint32"],
            uinteger=state["uinteger"],
        )

    def restore_noise(self, stored: NoiseState | None) -> None:
        """Go on with seeded noise; noise of the operating system is fresh.

        Raises:
            ValueError: one of the two is seeded and the other is not.
        """
        if (stored is not None) != self._seeded:
            raise ValueError("noise is seeded or it is not")
        if stored is None:
            return
        state: Any = self._draw.bit_generator.state
        state["state"]["counter"][:] = stored.counter
        state["buffer"][:] = stored.buffer
        state |= {name: getattr(stored, name) for name in ("buffer_pos", "has_uint32", "uinteger")}
        self._draw.bit_generator.state = state

    def _forget_batch(self) -> None:
        """Drop what an aborted step leaves behind: private tensors that break the next step."""
        self._optimizer.zero_grad(set_to_none=True)
        for layer in self.model.modules():
            for name in {"activations", "max_batch_len"} & vars(layer).keys():
                delattr(layer, name)
        for p in self.model.parameters():
            vars(p).pop("_current_grad_sample", None)
            vars(p)["_forward_counter"] = 0  # Opacus' count of forward passes without a backward
