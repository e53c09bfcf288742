"""What every run says of itself: CoDream's and a baseline's answer the same questions."""

import itertools

import pytest
import torch

from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.config.methods import parse_method
from codream_secure.errors import UserError
from codream_secure.federation.run import choose_device
from codream_secure.federation.simulation import Simulation


def runs(tiny, **options):
    config = tiny(models="mlp", rounds=1, **options)
    yield Simulation(config)
    for name in ("fedavg", "fedavg-secure", "avgkd"):
        yield BaselineRun(config, parse_method(name), BaselineSettings(local_epochs=1))


def test_every_run_names_itself_and_says_whether_it_is_masked(tiny):
    found = {run.method_name: (run.masked, run.makes_dreams) for run in runs(tiny)}
    assert found == {
        "codream": (True, True),
        "fedavg": (False, False),
        "fedavg-secure": (True, False),
        "avgkd": (False, False),
    }


def test_every_run_is_measured_after_each_round_and_its_hooks_are_told(tiny):
    for run in runs(tiny):
        told = []
        run.after_round.append(told.append)
        (measurement,) = itertools.islice(run.rounds(), 1)
        assert told == [measurement] == run.observer.history
        assert run.finished_rounds == 1
        assert run.iterations > 0
        assert run.guarantee() is None
        assert bool(run.dreams) == run.makes_dreams


def test_every_run_gives_the_weights_of_its_models_by_name(tiny):
    for run in runs(tiny):
        list(itertools.islice(run.rounds(), 1))
        names = {f"client-{c}" for c in run.federation.roster}
        if run.server_model() is not None:
            names.add("server")
        assert set(run.weights()) == names
        for weights in run.weights().values():
            assert all(value.device.type == "cpu" for value in weights.values())


def test_a_baseline_says_its_settings_and_what_it_charges(tiny):
    simulation, *baselines = runs(tiny)
    assert simulation.method_settings == {}
    assert all(run.method_settings["local_epochs"] == 1 for run in baselines)
    config = tiny(models="mlp", dp_eps=8.0, dp_steps=2, validation=0.0)
    for name in ("fedavg", "dpsgd-secure"):
        run = BaselineRun(config, parse_method(name), BaselineSettings())
        own = run.baseline.plan if name == "dpsgd-secure" else run.federation.plan
        assert run.budget is own


def test_a_threshold_without_a_majority_is_refused_by_every_run(tiny):
    config = tiny(threshold=2)
    with pytest.raises(UserError, match="--threshold must be 3 to 4 for 4 clients, not 2"):
        Simulation(config)
    with pytest.raises(UserError, match="--threshold must be 3 to 4 for 4 clients, not 2"):
        BaselineRun(config, parse_method("fedavg"), BaselineSettings())


def test_a_device_that_is_missing_is_refused():
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match="sees no CUDA device"):
            choose_device("cuda")
