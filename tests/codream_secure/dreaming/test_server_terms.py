"""The gradients that the server adds itself, against finite differences in double precision."""

import pytest
import torch
from dream_settings import settings
from torch import nn

from codream_secure.dreaming.losses import class_balance, class_mean_distance, entropy
from codream_secure.dreaming.server_terms import ClassMeans, own_gradient, student_gradient


def dreams(count=4):
    draw = torch.Generator().manual_seed(0)
    return torch.randn((count, 1, 3, 3), generator=draw, dtype=torch.float64)


def numerical(function, x, step=1e-5):
    """Return the central differences of a scalar function."""
    gradient = torch.zeros_like(x)
    for index in range(x.numel()):
        moved = torch.zeros(x.numel(), dtype=x.dtype)
        moved[index] = step
        moved = moved.reshape(x.shape)
        gradient.view(-1)[index] = (function(x + moved) - function(x - moved)) / (2 * step)
    return gradient


def test_the_priors_pull_towards_zero_and_towards_neighbours():
    x = dreams()
    found = own_gradient(x, settings(l2_weight=0.5), None)
    assert torch.allclose(found, 0.5 * 2 * x * len(x) / x.numel())
    smooth = own_gradient(torch.ones_like(x), settings(tv_weight=1.0), None)
    assert torch.equal(smooth, torch.zeros_like(x))
    spike = torch.zeros_like(x)
    spike[0, 0, 1, 1] = 1.0
    pull = own_gradient(spike, settings(tv_weight=1.0), None)[0, 0]
    assert pull[1, 1] > 0 > pull[0, 1]
    assert pull[0, 1] == pull[1, 0] == pull[2, 1] == -pull[1, 1] / 4


def test_parallel_batches_are_held_to_class_means_each_by_itself():
    x, draw = dreams(6), torch.Generator().manual_seed(1)
    classes = torch.tensor([0, 1, 1, 2, 0, 0])
    means = torch.randn((3, 1, 3, 3), generator=draw, dtype=torch.float64)
    chosen = settings(statistics_weight=0.7, l2_weight=0.1, batches=2)

    def loss(x):
        halves = zip(x.chunk(2), classes.chunk(2), strict=True)
        apart = sum(float(class_mean_distance(*half, means)) for half in halves) / 2
        return len(x) * (0.7 * apart + 0.1 * float(x.square().mean()))

    found = own_gradient(x, chosen, ClassMeans(classes, means))
    assert torch.allclose(found, numerical(loss, x), atol=1e-8)
    # A change in the second batch leaves the first one's gradient as it is.
    other = torch.cat([x[:3], x[3:] + 1])
    again = own_gradient(other, chosen, ClassMeans(classes, means))
    assert torch.equal(again[:3], found[:3])
    assert not torch.equal(again[3:], found[3:])


@pytest.mark.parametrize("released", [False, True])
def test_without_weights_nothing_is_added(released):
    x = dreams()
    means = ClassMeans(torch.zeros(4, dtype=torch.int64), torch.ones(3, 1, 3, 3).double())
    assert not own_gradient(x, settings(), means if released else None).any()


def test_the_students_gradient_is_that_of_its_weighted_loss():
    x = dreams()
    student = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double().requires_grad_(False)

    def loss(x):
        logits = student(x)
        return len(x) * (0.3 * float(entropy(logits)) + 2.0 * float(class_balance(logits)))

    found = student_gradient(student, x, entropy_weight=0.3, balance_weight=2.0)
    assert torch.allclose(found, numerical(loss, x), atol=1e-7)
    assert not x.requires_grad
