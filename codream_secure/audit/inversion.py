"""Gradient inversion: which pictures can an attacker compute from what a client sends?

The attack is Deep Leakage from Gradients (Zhu, Liu, Han, NeurIPS 2019) with L-BFGS, on the
gradient of a small smooth network. The attacker knows the weights and the labels. Dream gradients
cannot be inverted in this way, because the server chooses the picture. Instead the gradient is
compared with every training picture of the client, and with pictures that the client never saw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.privacy.noise_search import noise_multiplier_for

_ITERATIONS = 200
_RESTARTS = 2
CLIP = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion:
    """How well the pictures were reconstructed.

    Attributes:
        sent: what the attacker had.
        psnr: peak signal-to-noise ratio of the reconstruction in dB, mean over pictures.
        baseline: psnr of the mean training picture, which needs no attack.
    """

    sent: str
    psnr: float
    baseline: float

    @property
    def leaks(self) -> bool:
        """Whether the attack is better than the mean picture by more than 3 dB."""
        return self.psnr > self.baseline + 3


def audit_inversion(
    images: Tensor, labels: Tensor, spec: InputSpec, *, epsilon: float = 8.0, seed: int = 0
) -> list[Inversion]:
    """Invert gradients of one client and of a sum, with and without DP.

    Args:
        images: pixels in [0, 1], shape (N, C, H, W), at least ten classes or examples.
        labels: int64, shape (N,).
        spec: shape of an image and the number of classes.
        epsilon: of 40 full-batch steps; their noise multiplier is used.
        seed: of weights, choices and noise.
    """
    draw = torch.Generator().manual_seed(seed)
    model = _network(spec, draw)
    chosen = _one_of_each(labels, 10)
    mean = images.mean(dim=0)
    noise = noise_multiplier_for(epsilon, 1e-5, 1.0, 40)
    found = []
    for count, name in ((1, "one FedAvg update of one picture"), (10, "a sum of ten such updates")):
        pictures, truth = images[chosen[:count]], labels[chosen[:count]]
        gradients = [
            _gradient(model, p[None], t[None]) for p, t in zip(pictures, truth, strict=True)
        ]
        clear = [torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True)]
        for told, sent in ((name, clear), (f"{name}, DP at epsilon {epsilon:g}", None)):
            target = sent or _private_sum(gradients, noise, draw)
            back = _invert(model, target, pictures.shape, truth, draw)
            found.append(
                Inversion(
                    sent=told,
                    psnr=_psnr(back, pictures),
                    baseline=_psnr(mean.expand_as(pictures), pictures),
                )
            )
    return found


def resemblance(gradients: Tensor, seen: Tensor, unseen: Tensor) -> list[Inversion]:
    """Return how similar dream gradients are to pictures, with the best scale and shift.

    Args:
        gradients: of one client with respect to dreams, shape (B, C, H, W).
        seen: the client's training pictures, pixels in [0, 1].
        unseen: pictures that it never saw.
    """
    baseline = _best_match(gradients, unseen)
    return [
        Inversion(
            sent="a dream gradient: the most similar training picture of its client",
            psnr=_best_match(gradients, seen),
            baseline=baseline,
        )
    ]


def _best_match(gradients: Tensor, pictures: Tensor) -> float:
    """Return the mean over gradients of the best PSNR over pictures."""
    flat = gradients.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    rows = pictures.flatten(1)
    centred = rows - rows.mean(dim=1, keepdim=True)
    left = centred.square().sum(dim=1)[None] - (unit @ centred.T).square()
    errors = left.clamp_min(1e-12) / rows.shape[1]
    return float((-10 * errors.min(dim=1).values.log10()).mean())


def _network(spec: InputSpec, draw: torch.Generator) -> nn.Module:
    """Return a small smooth network, with weights so large that gradients say much."""
    flat = 8 * math.ceil(spec.height / 2) * math.ceil(spec.width / 2)
    model = nn.Sequential(
        nn.Conv2d(spec.channels, 8, 5, padding=2),
        nn.Sigmoid(),
        nn.Conv2d(8, 8, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(flat, spec.classes),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape, generator=draw) - 0.5)
    return model


def _one_of_each(labels: Tensor, count: int) -> list[int]:
    """Return the first example of each class, so that labels tell the pictures apart."""
    first: dict[int, int] = {}
    for index, label in enumerate(labels.tolist()):
        first.setdefault(label, index)
    return list(first.values())[:count]


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(x), y, reduction="sum")
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _private_sum(
    gradients: Sequence[Sequence[Tensor]], noise: float, draw: torch.Generator
) -> list[Tensor]:
    """Return the sum of clipped gradients with the noise of one private step."""
    total = [torch.zeros_like(part) for part in gradients[0]]
    for parts in gradients:
        norm = torch.sqrt(sum((p.square().sum() for p in parts), torch.zeros(())))
        scale = (CLIP / norm).clamp(max=1)
        total = [sum_ + part * scale for sum_, part in zip(total, parts, strict=True)]
    return [t + noise * CLIP * torch.randn(t.shape, generator=draw) for t in total]


def _invert(
    model: nn.Module,
    target: Sequence[Tensor],
    shape: torch.Size,
    labels: Tensor,
    draw: torch.Generator,
) -> Tensor:
    """Return the pictures whose gradient is nearest to the target, from several attempts."""
    best, least = torch.full(shape, 0.5), math.inf
    for _ in range(_RESTARTS):
        guess = torch.rand(shape, generator=draw).requires_grad_()
        optimizer = torch.optim.LBFGS([guess], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def distance(guess: Tensor = guess, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(guess), labels, reduction="sum")
            made = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            pairs = zip(made, target, strict=True)
            error = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
            error.backward()  # type: ignore[no-untyped-call]
            return error

        optimizer.step(distance)  # type: ignore[no-untyped-call]
        reached = float(distance().detach())
        if np.isfinite(reached) and reached < least:
            least, best = reached, guess.detach().clamp(0, 1)
    return best


def _psnr(guess: Tensor, truth: Tensor) -> float:
    errors = (guess - truth).flatten(1).square().mean(dim=1).clamp_min(1e-12)
    return float((-10 * errors.log10()).mean())
