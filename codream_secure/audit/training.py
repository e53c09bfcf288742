"""White-box audit of DP-SGD steps on neighbouring data sets.

The attacker sees the model before and after a step and knows the example in question. It projects
the released update onto that example's gradient: for one step no attack is better.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.audit.bounds import family_epsilon
from codream_secure.privacy.accounting import privacy_cost, training
from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.dpsgd import PrivateTrainer

DELTA = 1e-5
_CLIP = 0.5
_FEATURES, _CLASSES = 16, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAudit:
    """What was found in single steps of one setting.

    Attributes:
        setting: its name.
        claimed: epsilon at delta 1e-5 of one step.
        found: the least epsilon that the trials do not exclude, at 99.9 % confidence.
        trials: on each side.
    """

    setting: str
    claimed: float
    found: float
    trials: int

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the claim."""
        return self.found <= self.claimed


Make = Callable[..., PrivateTrainer]


class Setting(NamedTuple):
    """One kind of private step."""

    name: str
    noise: float
    rate: float
    integers: bool


SETTINGS = (
    Setting("full batch", 1.5, 1.0, integers=False),
    Setting("sampled at 0.2", 0.8, 0.2, integers=False),
    Setting("full batch, integers (--secure-noise)", 1.5, 1.0, integers=True),
)


def audit_steps(
    trials: int = 2000, make: Make = PrivateTrainer, settings: Sequence[Setting] = SETTINGS
) -> list[StepAudit]:
    """Audit single steps in every setting.

    Args:
        trials: steps on each side.
        make: makes the trainer that is audited; tests pass faulty ones.
        settings: kinds of steps.
    """
    return [_audit(setting, trials, make) for setting in settings]


def _audit(setting: Setting, trials: int, make: Make) -> StepAudit:
    name, noise, rate, integers = setting
    draw = torch.Generator().manual_seed(0)
    others = 0.05 * torch.randn((8, _FEATURES), generator=draw)
    labels = torch.arange(8) % _CLASSES
    # An outlier, whose gradient is hundreds of times the clip before clipping.
    target, target_label = 100 * torch.ones(1, _FEATURES), torch.tensor([_CLASSES - 1])
    linear = nn.Linear(_FEATURES, _CLASSES, bias=False)
    nn.init.zeros_(linear.weight)
    start = nn.Sequential(linear)
    direction = _gradient(start, target, target_label)
    sides = []
    for x, y in (
        (others, labels),
        (torch.cat([others, target]), torch.cat([labels, target_label])),
    ):
        draws = np.empty(trials)
        model = copy.deepcopy(start)
        trainer = make(
            model,
            clip=_CLIP,
            noise_multiplier=noise,
            sampling_rate=rate,
            expected_batch=1.0,
            learning_rate=1.0,
            budget=PrivacyBudget(trials),
            seed=None,
            integers=integers,
        )
        for trial in range(trials):
            model.load_state_dict(start.state_dict())
            trainer.step(x, y)
            moved = torch.cat([p.detach().flatten() for p in model.parameters()])
            draws[trial] = float(-moved @ direction / _CLIP)
        sides.append(draws)
    found = family_epsilon(sides[0], sides[1], DELTA, sampling_rate=rate)
    claimed = privacy_cost([training(noise, rate, 1, integers=integers)], DELTA).epsilon
    return StepAudit(setting=name, claimed=claimed, found=found, trials=trials)


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(model(x), y)
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    unit: Tensor = flat / flat.norm()
    return unit
