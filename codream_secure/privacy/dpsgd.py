"""DP-SGD of a local model: Opacus computes and clips gradients; the randomness is our own."""

import math
import secrets
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.integer_gradients import GradientGrid
from codream_secure.privacy.integer_noise import IntegerNoise
from codream_secure.privacy.model_checks import check_private_model
from codream_secure.runtime.parallel import stop_if_interrupted
from codream_secure.storage.checkpoint import NoiseState
from protocols.primitives.keys import hkdf


def randomness(seed: int | None) -> np.random.Generator:
    """Return the generator of noise and Poisson draws.

    Args:
        seed: for experiments; None takes the 128-bit key from the operating system.

    Returns:
        A Philox generator. It is fully keyed, but not a cryptographic sampler, and its normals
        are floating-point numbers (Mironov, CCS 2012): limits that SECURITY.md states.
    """
    # Not torch's generator: on the CPU it uses only 32 bits of its seed.
    if seed is None:
        return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


class _Optimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with noise from a fully keyed generator.

    Guarantee:
        One example moves the clipped sum by at most ``clip`` (up to float32 rounding), whatever
        it contains. A gradient without a finite norm counts as zero. (Opacus' clipping would turn
        it into NaN in every weight, a release that no noise hides.)
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
        # The norms show what is not finite; checking every number takes longer than the step.
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
        One example moves the sum by at most ``grid.l2``, exactly. The noise is discrete Gaussian
        with a variance of at least (noise_multiplier * grid.l2)^2, from AES-CTR under a key of
        each step's own; its sampler is exact up to the distance that `IntegerNoise` states. At
        full batch a step costs what `accounting.training_mechanism` says. Proof:
        docs/accounting.md.
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
        """Store the integer sum of clipped and truncated per-example gradients."""
        self._total = self._grid.sum(self.grad_samples)

    def add_noise(self) -> None:
        """Store the sum plus integer noise, in real units, in ``p.grad``."""
        # The counter of the budget makes the key new in every step, also after a restart.
        step = self._budget.charged.to_bytes(8, "big")
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
        expected_batch: the public denominator of the sum. It must not be q times the client's own
            number of examples, because adding or removing an example changes that number.
        learning_rate: of SGD.
        budget: charged before every step.
        seed: of noise and draws, for experiments; None takes both from the operating system.
        integers: whether sum and noise are exact integers; only at sampling rate 1.

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
        # Hooks are active only inside `step`. Outside it the model is an ordinary module, so that
        # public training stores no per-example gradients and copies have no hooks.
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

        If the batch is empty, the step consists of noise: a skipped step would reveal that.

        Args:
            x: all local images, scaled, float32, shape (N, C, H, W).
            y: their labels, int64, shape (N,).

        Raises:
            BudgetExhausted: all steps are spent; nothing was computed.
        """
        stop_if_interrupted()
        self._budget.charge()
        self.model.train()  # Opacus' hooks do nothing in evaluation mode
        drawn = torch.from_numpy(self._draw.random(len(y)) < self.sampling_rate).to(x.device)
        # Opacus' full backward hooks run only if the input needs a gradient.
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
        """Return the state of seeded noise; None if the noise is the operating system's."""
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
        """Continue seeded noise from a state; noise of the operating system stays fresh.

        Raises:
            ValueError: there is a state but no seed, or a seed but no state.
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
        """Delete the private tensors of a step; an aborted one leaves some that break the next."""
        self._optimizer.zero_grad(set_to_none=True)
        for layer in self.model.modules():
            for name in {"activations", "max_batch_len"} & vars(layer).keys():
                delattr(layer, name)
        for p in self.model.parameters():
            vars(p).pop("_current_grad_sample", None)
            vars(p)["_forward_counter"] = 0  # Opacus' count of forward passes without a backward
