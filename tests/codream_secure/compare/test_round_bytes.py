import itertools

import msgspec
import pytest

from codream_secure.aggregation.byte_ledger import megabytes
from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.compare import round_bytes
from codream_secure.compare.round_bytes import (
    FEDAVG,
    IMAGENET_VGG,
    crossover,
    dream_bytes,
    dream_formula,
    fedavg_bytes,
    fedavg_formula,
    plain_bytes,
    tensor_sizes,
)
from codream_secure.config.methods import parse_method
from codream_secure.models.tensors import tensors_of
from codream_secure.runs.sizes_format import SPEC, RoundSizes, Shape


@pytest.mark.parametrize("clients", [4, 10])
def test_fast_mode_at_the_papers_shapes_sends_less_than_ten_megabytes(clients):
    found = dream_bytes(Shape(clients=clients), fast=True, steps=1)
    assert megabytes(found) <= 10
    # One broadcast of 5 x 256 dreams of 3 x 32 x 32 bytes, and 4 or 5 bits a coordinate back.
    numbers = 5 * 256 * 3 * 32 * 32
    assert found["down"] == pytest.approx(numbers, rel=0.03)
    assert found["up"] == pytest.approx(numbers * {4: 4, 10: 5}[clients] / 8, rel=0.03)


@pytest.mark.parametrize("name", FEDAVG)
def test_sizes_of_fedavg_are_those_of_a_run(tiny, name):
    run = BaselineRun(tiny(models="resnet8"), parse_method(name), BaselineSettings(local_epochs=1))
    list(itertools.islice(run.rounds(), 1))
    numbers = [v.numel() for v in tensors_of(run.baseline.model).values()]
    said = fedavg_bytes(numbers, parse_method(name), 4)
    assert said["up"] == pytest.approx(run.ledger.per_client("up"), abs=3)
    # A scale is a float that msgpack writes in nine bytes, whatever its value.
    assert said["down"] == pytest.approx(run.ledger.per_client("down"), abs=8)


def test_what_a_further_step_costs_does_not_change():
    small = Shape(dreams=8, batches=2, dream_steps=4, bits=4)
    said, run = plain_bytes(small), dream_bytes(small, fast=False, steps=4)
    for direction in ("up", "down"):
        assert said[direction] == pytest.approx(run[direction], rel=0.01)


@pytest.mark.parametrize(("clients", "bits"), [(3, 4), (4, 2), (10, 1), (24, 2)])
def test_the_formula_of_the_docs_is_the_ledgers(clients, bits):
    shape = Shape(clients=clients, bits=bits, dreams=32, batches=1, dream_steps=3, fast_steps=2)
    for fast, steps in ((False, 3), (True, 2)):
        counted = megabytes(dream_bytes(shape, fast=fast, steps=steps)) * 1e6
        # Keys and labels are what the formula leaves out.
        assert dream_formula(shape, steps, fast=fast) == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize("name", FEDAVG)
def test_at_the_crossover_both_send_as_much(name):
    shape, method = Shape(), parse_method(name)
    numbers = round(crossover(shape, method)["codream-fast"])
    fedavg = megabytes(fedavg_bytes([numbers], method, shape.clients))
    dreams = megabytes(dream_bytes(shape, fast=True, steps=shape.fast_steps))
    assert fedavg == pytest.approx(dreams, rel=0.03)
    assert fedavg_formula(numbers, method, shape.clients) == pytest.approx(fedavg * 1e6, rel=0.01)


def test_the_models_have_the_sizes_of_the_reference():
    # Numbers with BatchNorm's statistics, in millions.
    expected = {"resnet18": 11.18, "resnet34": 21.30, "vgg11": 9.24, IMAGENET_VGG: 132.86}
    for model, millions in expected.items():
        assert sum(tensor_sizes(model, SPEC)) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.pictures
def test_the_command_prints_the_sizes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(round_bytes, "MODELS", ("resnet18", "wrn40-1"))
    small = ["--dreams", "4", "--dream-batches", "1", "--dream-steps", "2"]
    code, out, err = run("compare", "--sizes", *small, "--out", "sizes", "--json")
    assert (code, err) == (0, "")
    found = msgspec.json.decode(out, type=RoundSizes)
    assert (
        msgspec.json.decode((tmp_path / "sizes/sizes.json").read_bytes(), type=RoundSizes) == found
    )
    assert found.shape == Shape(dreams=4, batches=1, dream_steps=2)
    assert [row.model for row in found.rows] == ["resnet18", "wrn40-1"]
    assert found.rows[0].megabytes["official: codream-fast"] == pytest.approx(172.1, abs=0.2)
    both = found.rows[0].both_ways()
    assert both["fedavg"] == sum(found.rows[0].bytes["fedavg"].values()) / 1e6
    assert both["paper: codream"] == 600
    assert (tmp_path / "sizes/crossover.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("compare", "--sizes", *small)
    assert code == 0
    assert "wrn40-1" in out
