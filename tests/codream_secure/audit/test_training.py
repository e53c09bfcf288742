"""The audit of single steps finds nothing in right steps, and every planted fault."""

import pytest
from trainers import planted

from codream_secure.audit.training import SETTINGS, audit_steps

FULL, SAMPLED, INTEGERS = SETTINGS


HALVED = planted(noise_multiplier=lambda o: o["noise_multiplier"] / 2)
# Setting, fault, and trials on each side: the smaller the fault, the more it takes to find it.
STEP_FAULTS = {
    "noise off": (FULL, planted(noise_multiplier=lambda _: 1e-6), 300),
    "sigma halved": (FULL, HALVED, 2000),
    "sigma halved, integers": (INTEGERS, HALVED, 2000),
    # The same noise as before in real units, and a clip that no gradient reaches.
    "clip off": (
        FULL,
        planted(
            noise_multiplier=lambda o: o["noise_multiplier"] / 1e4, clip=lambda o: o["clip"] * 1e4
        ),
        300,
    ),
    "Poisson sampling off": (SAMPLED, planted(sampling_rate=lambda _: 1.0), 1000),
}


def test_right_steps_hold():
    assert all(one.holds for one in audit_steps(trials=200))


# The small faults take many trials: `make test-slow` looks for them.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if trials > 300 else ())
        for name, (_, _, trials) in STEP_FAULTS.items()
    ],
)
def test_a_planted_fault_in_a_step_is_found(name):
    setting, make, trials = STEP_FAULTS[name]
    (found,) = audit_steps(trials=trials, make=make, settings=[setting])
    assert not found.holds
