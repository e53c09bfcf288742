"""How much everybody trains and when: the same for a simulated client and one on a machine."""

from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import label_temperature
from codream_secure.federation.members import Federation
from codream_secure.learning.acquisition import AcquisitionSettings


def warmup_steps(federation: Federation) -> int:
    """Return the local steps before the first dream; private ones are charged now."""
    if plan := federation.plan:
        return plan.reserve(plan.warmup_steps)
    return federation.config.learning.warmup_epochs * _steps_per_epoch(federation)


def acquisition_settings(federation: Federation, number: int) -> AcquisitionSettings:
    """Return how participants learn in round ``number``; private steps are charged now."""
    config = federation.config
    if plan := federation.plan:
        local_steps = plan.reserve(plan.round_steps(number))
    else:
        local_steps = config.learning.local_epochs * _steps_per_epoch(federation)
    return learning_settings(config, number, local_steps)


def learning_settings(config: Resolved, number: int, local_steps: int) -> AcquisitionSettings:
    """Return how somebody learns in round ``number`` who takes so many local steps."""
    learning = config.learning
    return AcquisitionSettings(
        order=learning.acquisition,
        kd_epochs=0 if number % learning.kd_period else learning.kd_epochs,
        kd_batch=learning.kd_batch,
        kd_temperature=label_temperature(config),
        augmentation=learning.dream_augment,
        local_steps=local_steps,
    )


def _steps_per_epoch(federation: Federation) -> int:
    return max(1, federation.share // federation.config.learning.batch)
