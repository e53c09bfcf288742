"""What a run takes is estimated from its settings, and refused if the machine has less."""

import pytest

from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.federation.memory import needed
from codream_secure.federation.simulation import Simulation
from codream_secure.models.build import build_model
from codream_secure.models.footprint import footprint_of
from codream_secure.runtime import memory

LARGE = InputSpec(3, 224, 224, 1000)


def parts(averages=False, **options):
    found = needed(resolve(Config.from_options(options)), LARGE, 100, averages=averages)
    return {name: part.size for name, part in found.items()}


def test_every_kind_grows_with_the_options_that_its_refusal_names():
    base = parts(clients=10, models="resnet8", dreams=8)
    more = parts(clients=20, models="resnet8", dreams=8)
    assert more["models"] == 2 * base["models"]
    assert more["keys"] == 4 * base["keys"]
    assert parts(clients=10, models="resnet8", dreams=16)["vectors"] == 2 * base["vectors"]
    assert parts(clients=10, models="resnet8", dreams=8, batch=8)["training"] < base["training"]
    assert parts(clients=10, models="resnet8", secure=False)["keys"] == 0
    # One vector has all weights of a model where models are averaged.
    assert parts(averages=True, models="resnet18")["vectors"] > 11_000_000 * 60


@pytest.mark.parametrize("name", ["linear", "mlp", "resnet8", "lenet5"])
def test_a_model_that_is_not_built_has_the_size_of_one_that_is(name):
    spec = InputSpec(1, 8, 8, 10)
    built = build_model(name, spec, seed=0)
    state = sum(value.nbytes for value in built.state_dict().values())
    found = footprint_of(name, spec, width=None, norm="batch")
    assert found.state == state
    assert found.image >= 4 * 64


def test_a_run_that_does_not_fit_is_one_line_before_anything_is_built(tiny, monkeypatch):
    config = tiny()
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    Simulation(config)
    monkeypatch.setattr(memory, "available", lambda: 1 << 12)
    with pytest.raises(UserError, match=r"this run, .* of it for .* free; lower --"):
        Simulation(config)
