"""One-run audit: half of the canaries go into one private training, and the attacker guesses which.

Steinke, Nasr, Jagielski (Privacy Auditing with One (1) Training Run, NeurIPS 2023), white box: the
attacker sees every update. A canary is an example with an input of its own, so that its gradient
touches weights that no other example does: the strongest that an example can be.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from codream_secure.audit.bounds import one_run_epsilon
from codream_secure.privacy.accounting import training_noise
from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.dpsgd import PrivateTrainer

DELTA = 1e-5
STEPS, CLIP, CANARIES = 40, 0.5, 1000
_EXAMPLES = 500
# The attacker guesses the surest part and abstains on the others.
_GUESSED = 0.2
_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRunAudit:
    """What one run gave away.

    Attributes:
        claimed: epsilon at delta 1e-5 of the training; infinite without noise.
        found: a lower bound of it, with 95 % confidence.
        guesses, correct: of canaries.
        canaries: how many.
    """

    claimed: float
    found: float
    guesses: int
    correct: int
    canaries: int

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the claim."""
        return self.found <= self.claimed


Make = Callable[..., PrivateTrainer]


def audit_one_run(
    images: Tensor,
    labels: Tensor,
    classes: int,
    epsilon: float,
    *,
    seed: int = 0,
    make: Make = PrivateTrainer,
) -> OneRunAudit:
    """Return what a private training says of its canaries.

    Args:
        images: scaled, shape (N, C, H, W); up to 500 are trained on beside the canaries.
        labels: int64, shape (N,).
        classes: how many there are.
        epsilon: of the training; infinite: clipping without noise.
        seed: of the coins; noise is the system's.
        make: makes the trainer: the subject; tests put faulty ones in its place.
    """
    draw = np.random.default_rng(seed)
    coins = draw.random(CANARIES) < _HALF
    pixels = images[:_EXAMPLES].flatten(1)
    x = torch.zeros(len(pixels) + CANARIES, pixels.shape[1] + CANARIES)
    x[: len(pixels), : pixels.shape[1]] = pixels
    x[len(pixels) :, pixels.shape[1] :] = 1e3 * torch.eye(CANARIES)
    y = torch.cat([labels[:_EXAMPLES], torch.from_numpy(draw.integers(classes, size=CANARIES))])
    kept = torch.from_numpy(np.concatenate([np.ones(len(pixels), bool), coins]))
    linear = nn.Linear(x.shape[1], classes, bias=False)
    nn.init.zeros_(linear.weight)
    noise = training_noise(epsilon, DELTA, 1.0, STEPS) if np.isfinite(epsilon) else 0.0
    trainer = make(
        nn.Sequential(linear),
        clip=CLIP,
        noise_multiplier=noise,
        sampling_rate=1.0,
        expected_batch=float(len(x)),
        # So small that predictions, and with them the canaries' gradients, stay what they are.
        learning_rate=1e-3,
        budget=PrivacyBudget(STEPS),
        seed=None,
    )
    for _ in range(STEPS):
        trainer.step(x[kept], y[kept])
    # Every step moves a canary's own weights towards its label, against all other classes.
    own = linear.weight.detach()[:, pixels.shape[1] :]
    right = own[y[len(pixels) :], torch.arange(CANARIES)]
    scores = (right - (own.sum(dim=0) - right) / (classes - 1)).numpy()
    guessed = int(CANARIES * _GUESSED / 2)
    order = np.argsort(scores)
    correct = int(coins[order[-guessed:]].sum() + (~coins[order[:guessed]]).sum())
    return OneRunAudit(
        claimed=epsilon,
        found=one_run_epsilon(2 * guessed, correct, CANARIES, DELTA),
        guesses=2 * guessed,
        correct=correct,
        canaries=CANARIES,
    )
