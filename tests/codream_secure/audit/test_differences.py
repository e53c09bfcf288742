"""The attack on what the rules on cohorts leave, which noise alone bounds (D1)."""

import pytest

from codream_secure.audit import differences
from codream_secure.audit.differences import audit_differences
from codream_secure.config.settings import Config
from codream_secure.federation.simulation import Simulation

LEAK = {
    "clients": 10,
    "rounds": 1,
    "dreams": 16,
    "dream_steps": 8,
    "models": "lenet5",
    "samples_per_client": 50,
    "warmup_epochs": 5,
    "kd_epochs": 1,
    "seed": 0,
}


def found(**options):
    simulation = Simulation(Config.from_options(LEAK | options), compare_independent=False)
    list(simulation.rounds())
    return {(d.bits, d.distance, d.sums): d.correlation for d in audit_differences(simulation)}


def test_sums_with_and_without_a_client_tell_its_gradient(monkeypatch):
    """Each answer is computed and rounded anew, also at equal dreams."""
    monkeypatch.setattr(differences, "DISTANCES", (0.0, 8.0))
    monkeypatch.setattr(differences, "SUMS", (1, 4))
    told = found(clients=5, dream_steps=2, dreams=4, warmup_epochs=2)
    assert len(told) == 8
    for distance in (0.0, 8.0):
        assert 0.2 < told[4, distance, 1] < told[4, distance, 4] < 0.97
        assert told[4, distance, 1] < told[12, distance, 1] < 1.0001
    assert told[12, 0.0, 1] > 0.999
    assert told[12, 8.0, 1] < told[12, 8.0, 4] < 0.9999


@pytest.mark.slow
def test_the_figures_of_security_md():
    """`codream-secure audit privacy RUN --only differences` prints them; `make audit` checks."""
    told = found()
    expected = {
        (4, 0.0, 1): 0.50, (4, 0.0, 16): 0.64, (4, 8.0, 1): 0.51, (4, 8.0, 16): 0.63,
        (12, 0.0, 1): 1.0, (12, 4.0, 1): 0.97, (12, 4.0, 16): 0.99, (12, 8.0, 1): 0.92,
        (12, 8.0, 16): 0.99,
    }  # fmt: skip
    for how, figure in expected.items():
        assert told[how] == pytest.approx(figure, abs=0.03), (how, told)
