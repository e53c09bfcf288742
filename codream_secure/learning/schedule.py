"""How many training steps a participant takes in a round, in simulations and on sites."""

import math

from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import label_temperature
from codream_secure.learning.acquisition import AcquisitionSettings
from codream_secure.privacy.plan import PrivacyPlan


def warmup_steps(config: Resolved, plan: PrivacyPlan | None, share: int) -> int:
    """Return how many local steps a participant takes before the first dream.

    Args:
        config: resolved settings.
        plan: is charged for these steps by this call; None without DP.
        share: number of examples of a client if all were dealt evenly; public.
    """
    if plan is not None:
        return plan.reserve(plan.warmup_steps)
    return config.learning.warmup_epochs * _steps_per_epoch(config, share)


def rate_at(config: Resolved, done: float) -> float:
    """Return the share of the full learning rate, 0 to 1.

    Args:
        config: resolved settings.
        done: share of the run that is done before the round, 0 to 1.

    Source: cosine annealing without restarts, Loshchilov and Hutter, ICLR 2017.
    """
    if config.learning.schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * min(done, 1.0))) / 2


def round_rate(config: Resolved, number: int, done: float | None = None) -> float:
    """Return the share of the full learning rate in a round, 0 to 1.

    Args:
        config: resolved settings.
        number: round number, from 1.
        done: share of the run that is done before this round; None: that of its rounds.
    """
    return rate_at(config, (number - 1) / config.dream.rounds if done is None else done)


def acquisition_settings(
    config: Resolved,
    plan: PrivacyPlan | None,
    share: int,
    number: int,
    done: float | None = None,
) -> AcquisitionSettings:
    """Return how a participant with local data learns in one round.

    Args:
        config: resolved settings.
        plan: is charged for the round's private steps by this call; None without DP.
        share: number of examples of a client if all were dealt evenly; public.
        number: round number, from 1.
        done: share of the run that is done before this round; None: that of its rounds.
    """
    if plan is not None:
        local_steps = plan.reserve(plan.round_steps(number))
    else:
        local_steps = config.learning.local_epochs * _steps_per_epoch(config, share)
    return learning_settings(config, number, local_steps, done)


def learning_settings(
    config: Resolved, number: int, local_steps: int, done: float | None = None
) -> AcquisitionSettings:
    """Return how a participant that takes ``local_steps`` local steps learns in a round.

    Charges no privacy budget. The server's student has no local data and passes 0 local steps.
    """
    learning = config.learning
    return AcquisitionSettings(
        order=learning.acquisition,
        kd_epochs=0 if number % learning.kd_period else learning.kd_epochs,
        kd_batch=learning.kd_batch,
        kd_temperature=label_temperature(config),
        augmentation=learning.dream_augment,
        local_steps=local_steps,
        rate=round_rate(config, number, done),
    )


def _steps_per_epoch(config: Resolved, share: int) -> int:
    # From the even share, not from a client's own number of examples: all take as many steps.
    return max(1, share // config.learning.batch)
