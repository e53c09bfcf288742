"""How many steps a participant takes and when: one schedule for simulated clients and for sites."""

from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import label_temperature
from codream_secure.learning.acquisition import AcquisitionSettings
from codream_secure.privacy.plan import PrivacyPlan


def warmup_steps(config: Resolved, plan: PrivacyPlan | None, share: int) -> int:
    """Return how many local steps a participant takes before the first dream.

    Args:
        config: resolved settings.
        plan: charged now for the private steps among them; None: local training is not private.
        share: examples of a client if all were dealt evenly; public.
    """
    if plan is not None:
        return plan.reserve(plan.warmup_steps)
    return config.learning.warmup_epochs * _steps_per_epoch(config, share)


def acquisition_settings(
    config: Resolved, plan: PrivacyPlan | None, share: int, number: int
) -> AcquisitionSettings:
    """Return how a participant with local data learns in one round.

    Args:
        config: resolved settings.
        plan: charged now for the round's private steps; None: local training is not private.
        share: examples of a client if all were dealt evenly; public.
        number: of the round, from 1.
    """
    if plan is not None:
        local_steps = plan.reserve(plan.round_steps(number))
    else:
        local_steps = config.learning.local_epochs * _steps_per_epoch(config, share)
    return learning_settings(config, number, local_steps)


def learning_settings(config: Resolved, number: int, local_steps: int) -> AcquisitionSettings:
    """Return how a participant learns in round ``number`` that takes ``local_steps`` local steps.

    Charges nothing: the server's student, which has no local data, passes 0 steps.
    """
    learning = config.learning
    return AcquisitionSettings(
        order=learning.acquisition,
        kd_epochs=0 if number % learning.kd_period else learning.kd_epochs,
        kd_batch=learning.kd_batch,
        kd_temperature=label_temperature(config),
        augmentation=learning.dream_augment,
        local_steps=local_steps,
    )


def _steps_per_epoch(config: Resolved, share: int) -> int:
    # Everybody takes the steps of an even share, whatever number of examples they have.
    return max(1, share // config.learning.batch)
