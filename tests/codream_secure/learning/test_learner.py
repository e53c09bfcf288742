"""Learners without DP: optimizer, schedule, local loss, BatchNorm statistics."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from codream_secure.config.concerns import LearningConfig
from codream_secure.learning.batches import BatchStream, log_class_counts
from codream_secure.learning.learner import PlainLearner, distillation_loss

X = torch.linspace(0, 2, 24).reshape(6, 1, 2, 2)
Y = torch.tensor([0, 0, 0, 1, 1, 0])


def model():
    made = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        made[1].weight.copy_(torch.arange(12).reshape(3, 4) / 10)
        made[1].bias.zero_()
    return made


def learner(made=None, *, offset=None, **settings):
    stream = BatchStream(X, Y, 6, torch.Generator().manual_seed(0), offset=offset)
    return PlainLearner(made or model(), stream, LearningConfig(**settings))


def weights_and_gradient(made, offset=0.0):
    copy = model()
    copy.load_state_dict(made.state_dict())
    F.cross_entropy(copy(X) + offset, Y).backward()
    return copy[1].weight.detach().clone(), copy[1].weight.grad.clone()


def test_sgd_takes_nesterov_steps_with_weight_decay():
    """One step of Nesterov momentum 0.9 from rest moves by 1.9 times the gradient."""
    one = learner(optimizer="sgd", learning_rate=0.1, weight_decay=0.01)
    before, gradient = weights_and_gradient(one.model)
    one.local_step()
    wanted = before - 0.1 * 1.9 * (gradient + 0.01 * before)
    assert torch.allclose(one.model[1].weight, wanted, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_first_steps_of_adam_with_weight_decay(optimizer):
    """Adam's first step is the sign of the gradient; decay is part of it, or decoupled."""
    one = learner(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
    before, gradient = weights_and_gradient(one.model)
    one.local_step()
    if optimizer == "adam":
        wanted = before - 0.1 * (gradient + 0.5 * before).sign()
    else:
        wanted = before * (1 - 0.1 * 0.5) - 0.1 * gradient.sign()
    assert torch.allclose(one.model[1].weight, wanted, atol=1e-4)


def test_a_rate_scales_the_steps_of_sgd():
    full, tenth = (learner(optimizer="sgd", learning_rate=0.1) for _ in range(2))
    tenth.set_rate(0.1)
    start = model()[1].weight
    full.local_step()
    tenth.local_step()
    moved = full.model[1].weight - start, tenth.model[1].weight - start
    assert torch.allclose(moved[0] / 10, moved[1], atol=1e-7)


def test_the_balanced_loss_adds_the_logarithm_of_the_clients_counts():
    counts = log_class_counts(Y, 3)
    assert counts.tolist() == pytest.approx([math.log(4), math.log(2), math.log(0.5)])
    one = learner(optimizer="sgd", learning_rate=0.1, offset=counts)
    before, gradient = weights_and_gradient(one.model, counts)
    one.local_step()
    assert torch.allclose(one.model[1].weight, before - 0.19 * gradient, atol=1e-6)


def normalized():
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("keep", [True, False])
def test_dreams_change_running_statistics_unless_they_are_kept(keep):
    one = learner(normalized(), kd_statistics="keep" if keep else "update")
    norm = one.model[0]
    before = norm.running_mean.clone()
    dreams, targets = X + 3, torch.full((6, 3), 1 / 3)
    one.distillation_step(dreams, targets, 2.0)
    assert torch.equal(norm.running_mean, before) == keep
    assert norm.momentum == 0.1
    one.local_step()
    assert not torch.equal(norm.running_mean, before)


def test_kept_statistics_do_not_change_the_step_itself():
    torch.manual_seed(0)
    start = normalized().state_dict()
    made = []
    for how in ("keep", "update"):
        one = learner(normalized(), kd_statistics=how)
        one.model.load_state_dict(start)
        one.distillation_step(X + 3, torch.full((6, 3), 1 / 3), 2.0)
        made.append(one.model[2].weight)
    assert torch.equal(*made)


def test_a_student_without_local_data_takes_its_statistics_from_dreams():
    one = PlainLearner(normalized(), None, LearningConfig(kd_statistics="keep"))
    one.distillation_step(X + 3, torch.full((6, 3), 1 / 3), 2.0)
    assert one.model[0].running_mean.item() == pytest.approx(0.1 * 4)


def test_the_distillation_loss_is_the_scaled_divergence():
    logits, targets = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.25, 0.75]])
    p = math.exp(0.5) / (math.exp(0.5) + 1)
    wanted = 4 * (0.25 * math.log(0.25 / p) + 0.75 * math.log(0.75 / (1 - p)))
    assert float(distillation_loss(logits, targets, 2.0)) == pytest.approx(wanted, rel=1e-5)
