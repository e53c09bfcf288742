"""One-run audit: half of the canaries go into one private training, and the attacker guesses which.

Source: Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, NeurIPS 2023. White
box: the attacker sees every update. A canary is an example with an input of its own, so that its
gradient touches weights that no other example touches. No example can be easier to find.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codream_secure.audit.bounds import one_run_epsilon
from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.dpsgd import PrivateTrainer
from codream_secure.privacy.noise_search import noise_multiplier_for

DELTA = 1e-5
STEPS, CLIP, CANARIES = 40, 0.5, 1000
_EXAMPLES = 500
# The attacker guesses for this part of the canaries, the surest, and abstains on the others.
_GUESSED = 0.2
_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRunAudit:
    """What the attacker found in one run.

    Attributes:
        claimed: epsilon at delta 1e-5 of the training; infinite without noise.
        found: a lower bound of epsilon, with 95 % confidence.
        guesses, correct: guesses that the attacker made, and how many were right.
        canaries: number of canaries.
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
    """Train once with canaries and return what the attacker finds.

    Args:
        images: scaled, shape (N, C, H, W); the first 500 are trained on beside the canaries.
        labels: int64, shape (N,).
        classes: number of classes.
        epsilon: of the training; infinite means clipping without noise.
        seed: of the coins; the noise is the operating system's.
        make: makes the trainer that is audited; tests pass faulty ones.
    """
    draw = np.random.default_rng(seed)
    coins = draw.random(CANARIES) < _HALF
    x, y = _with_canaries(images[:_EXAMPLES].flatten(1), labels[:_EXAMPLES], classes, draw)
    others = len(x) - CANARIES
    kept = torch.from_numpy(np.concatenate([np.ones(others, bool), coins]))
    linear = nn.Linear(x.shape[1], classes, bias=False)
    nn.init.zeros_(linear.weight)
    noise = noise_multiplier_for(epsilon, DELTA, 1.0, STEPS) if np.isfinite(epsilon) else 0.0
    trainer = make(
        nn.Sequential(linear),
        clip=CLIP,
        noise_multiplier=noise,
        sampling_rate=1.0,
        expected_batch=float(len(x)),
        # So small that the predictions, and with them the canaries' gradients, hardly change.
        learning_rate=1e-3,
        budget=PrivacyBudget(STEPS),
        seed=None,
    )
    for _ in range(STEPS):
        trainer.step(x[kept], y[kept])
    guesses, correct = _guess(_scores(linear.weight.detach(), y[others:]), coins)
    return OneRunAudit(
        claimed=epsilon,
        found=one_run_epsilon(guesses, correct, CANARIES, DELTA),
        guesses=guesses,
        correct=correct,
        canaries=CANARIES,
    )


def _with_canaries(
    pixels: Tensor, labels: Tensor, classes: int, draw: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return the examples followed by the canaries, each of which has an input of its own."""
    width = pixels.shape[1]
    x = torch.zeros(len(pixels) + CANARIES, width + CANARIES)
    x[: len(pixels), :width] = pixels
    # Large, so that a canary's gradient reaches the clip.
    x[len(pixels) :, width:] = 1e3 * torch.eye(CANARIES)
    y = torch.cat([labels, torch.from_numpy(draw.integers(classes, size=CANARIES))])
    return x, y


def _scores(weight: Tensor, labels: Tensor) -> NDArray[np.float32]:
    """Return how likely each canary was trained on; larger is likelier.

    Every step moves a canary's own weights towards its label and away from all other classes.
    """
    own = weight[:, -CANARIES:]
    right = own[labels, torch.arange(CANARIES)]
    return np.asarray((right - (own.sum(dim=0) - right) / (len(own) - 1)).numpy())


def _guess(scores: NDArray[np.float32], coins: NDArray[np.bool_]) -> tuple[int, int]:
    """Return how many guesses the attacker makes, and how many are right."""
    guessed = int(CANARIES * _GUESSED / 2)
    order = np.argsort(scores)
    correct = int(coins[order[-guessed:]].sum() + (~coins[order[:guessed]]).sum())
    return 2 * guessed, correct
