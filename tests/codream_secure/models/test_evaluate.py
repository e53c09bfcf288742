"""Logits, hits and accuracies, against numbers computed by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from codream_secure.data.examples import Examples
from codream_secure.models.evaluate import (
    accuracy,
    frozen_copy,
    hits,
    logits_of,
    personal_accuracy,
)


class Constant(nn.Module):
    """Always predicts class 1, and fails where it is evaluated in training mode."""

    def forward(self, x):
        assert not self.training
        return torch.tensor([0.0, 1.0]).repeat(len(x), 1)


def examples(labels):
    return Examples(torch.zeros(len(labels), 1, 2, 2), torch.tensor(labels))


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_accuracy_is_the_fraction_of_hits_and_restores_the_mode(batch):
    model = Constant().train()
    found = hits(model, examples([1, 1, 0, 1, 0]), batch=batch)
    assert found.tolist() == [True, True, False, True, False]
    assert accuracy(model, examples([1, 1, 0, 1, 0])) == pytest.approx(0.6)
    assert model.training


def test_personalised_accuracy_weighs_classes_as_the_client_has_them():
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    found = np.array([1, 0, 0, 0, 1, 0, 1], bool)
    assert personal_accuracy(found, labels, np.array([1, 0, 0])) == 0.25
    assert personal_accuracy(found, labels, np.array([0, 3, 1])) == pytest.approx(2.5 / 4)
    # Of class 3 there is no test example.
    assert personal_accuracy(found, labels, np.array([0, 2, 0, 9])) == 0.5


def test_logits_in_bfloat16_are_rounded_and_stay_float32():
    model, x = nn.Linear(4, 3, bias=False), torch.full((2, 4), 1 / 3)
    exact, rounded = (logits_of(model, x, bf16=bf16) for bf16 in (False, True))
    assert exact.dtype == rounded.dtype == torch.float32
    assert torch.equal(exact, x @ model.weight.T)
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert torch.allclose(exact, rounded, atol=0.02)


def test_a_frozen_copy_does_not_follow_its_model():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    copy = frozen_copy(model)
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    before = copy(torch.ones(1, 2))
    nn.init.zeros_(model[1].weight)
    model(torch.randn(8, 2))
    assert torch.equal(copy(torch.ones(1, 2)), before)
    assert all(p.requires_grad for p in model.parameters())
