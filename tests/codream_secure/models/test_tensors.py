"""A model's numbers as named tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from codream_secure.models.tensors import (
    add,
    difference,
    float_bytes,
    load,
    tensors_of,
    to_codes,
    zeros,
)


@pytest.fixture
def model():
    """A layer with weights, and one with running statistics that have been used."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    model(torch.randn(8, 3))
    return model


def test_numbers_are_copies_without_counters(model):
    found = tensors_of(model)
    assert set(found) == {
        *("0.weight", "0.bias", "1.weight", "1.bias"),
        *("1.running_mean", "1.running_var"),
    }
    found["0.weight"] += 1
    assert not torch.equal(found["0.weight"], model[0].weight)


def test_what_is_loaded_is_what_the_model_has_and_counters_stay(model):
    wanted = {name: value + 1 for name, value in tensors_of(model).items()}
    load(model, wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in tensors_of(model).items())
    assert model[1].num_batches_tracked == 1


def test_a_difference_leads_from_one_to_the_other(model):
    before = tensors_of(model)
    after = {name: value * 2 + 1 for name, value in before.items()}
    change = difference(after, before)
    for name, value in add(before, change).items():
        assert torch.allclose(value, after[name])
    half = add(zeros(before), change, 0.5)
    assert torch.allclose(half["0.bias"], (before["0.bias"] + 1) / 2)


def test_a_variance_does_not_become_negative(model):
    state = tensors_of(model)
    down = {name: torch.full_like(value, -10.0) for name, value in state.items()}
    moved = add(state, down)
    assert (moved["1.running_var"] == 0).all()
    assert (moved["1.running_mean"] < 0).all()


def test_bytes_are_little_endian_floats():
    value = torch.tensor([[1.0, -2.5], [0.0, 3.0]]).T
    assert np.frombuffer(float_bytes(value), "<f4").tolist() == [1.0, 0.0, -2.5, 3.0]


def test_codes_are_unbiased_and_at_most_one_level_off():
    value = torch.linspace(-1.0, 2.0, 1001)
    decoded = []
    for number in range(200):
        codes, low, step = to_codes(value, number.to_bytes(16, "big"))
        assert codes.dtype == np.uint8
        decoded.append(low + step * codes)
    exact = value.double().numpy()
    assert (low, step) == (pytest.approx(-1.0), pytest.approx(3 / 255))
    assert np.abs(np.stack(decoded) - exact).max() <= step * (1 + 1e-9)
    # Each rounding has a deviation of at most step / 2; five of the mean's deviations.
    assert np.abs(np.mean(decoded, axis=0) - exact).max() < 5 * step / 2 / np.sqrt(200)


def test_a_constant_tensor_is_coded_exactly():
    codes, low, step = to_codes(torch.full((4,), 0.25), bytes(16))
    assert (low + step * codes == 0.25).all()
