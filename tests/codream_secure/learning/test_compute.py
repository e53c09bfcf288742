"""Work is counted alike for all methods: in training steps on one minibatch."""

import pytest

from codream_secure.federation.simulation import Simulation
from codream_secure.learning.compute import Work


def test_a_forward_pass_alone_is_a_third_of_a_training_step():
    assert Work(trained=64).iterations(32) == 2
    assert Work(inferred=96).iterations(32) == pytest.approx(1)
    assert Work(trained=32, inferred=32).iterations(16) == pytest.approx(2 + 2 / 3)


def test_a_run_counts_local_steps_dreams_labels_and_distillation(tiny):
    options = {"samples_per_client": 40, "validation": 0.0, "acquisition": "two-stage"}
    config = tiny(dreams=6, dream_steps=3, kd_epochs=2, local_epochs=1, **options)
    simulation = Simulation(config, compare_independent=False)
    list(simulation.rounds())
    settings = simulation.config
    for member in simulation.federation.members.values():
        learner = member.client.learner
        local = learner.local_steps * min(settings.learning.batch, 40)
        distilled = settings.learning.kd_epochs * 6
        # Three dream steps go forward and backward, the labels forward alone.
        assert learner.work.trained == local + distilled + 3 * 6
        assert learner.work.inferred == 6
