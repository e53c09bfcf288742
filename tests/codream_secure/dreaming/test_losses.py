"""Each term of the dream loss against its definition."""

import math

import pytest
import torch

from codream_secure.dreaming.losses import (
    class_balance,
    class_mean_distance,
    entropy,
    squared_norm,
    total_variation,
)


def test_entropy_is_zero_for_certain_and_log_classes_for_uniform_predictions():
    assert entropy(torch.eye(10) * 100).item() == pytest.approx(0, abs=1e-6)
    assert entropy(torch.zeros(3, 10)).item() == pytest.approx(math.log(10))


def test_class_balance_is_lowest_when_certain_predictions_cover_all_classes():
    balanced = class_balance(torch.eye(10) * 100)
    collapsed = class_balance(torch.eye(10)[[0] * 10] * 100)
    assert balanced.item() == pytest.approx(-math.log(10))
    assert collapsed.item() == pytest.approx(0, abs=1e-6)


def test_class_balance_has_a_finite_gradient_when_a_class_never_occurs():
    logits = torch.zeros(4, 3)
    logits[:, 0] = 200
    logits.requires_grad_()
    class_balance(logits).backward()
    assert torch.isfinite(logits.grad).all()


def test_total_variation_counts_both_directions_once():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 1, 1] = 2.0
    assert total_variation(image).item() == pytest.approx(4 * 4 / 9)
    assert total_variation(torch.ones(2, 3, 4, 4)).item() == 0


def test_squared_norm_is_the_mean_square():
    assert squared_norm(torch.full((2, 1, 2, 2), 3.0)).item() == pytest.approx(9)


def test_the_distance_to_class_means_is_that_of_the_means_and_of_classes_that_are_there():
    classes, means = torch.tensor([0, 0, 2]), torch.zeros(3, 1, 2, 2)
    means[1], means[2] = 100.0, 5.0
    dreams = torch.stack([torch.full((1, 2, 2), v) for v in (-1.0, 4.0, 3.0)])
    expected = (1.5**2 + 2.0**2) / 2
    assert class_mean_distance(dreams, classes, means).item() == pytest.approx(expected)
