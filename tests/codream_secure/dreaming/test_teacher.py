"""What a client computes: R_bn against its definition, and the gradient it sends."""

import pytest
import torch
from torch import nn

from codream_secure.data.spec import InputSpec
from codream_secure.dreaming.feature_statistics import FeatureStatistics
from codream_secure.dreaming.teacher import LossWeights, client_loss, dream_gradient
from codream_secure.models import build_model

SPEC = InputSpec(1, 8, 8, 10)
ALL = LossWeights(entropy=1.0, feature_statistics=10.0, class_balance=1.0)


def frozen(name, norm="batch", seed=0):
    model = build_model(name, SPEC, norm=norm, seed=seed)
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8))
    return model.eval().requires_grad_(False)


def test_penalty_is_the_mean_over_layers_of_both_norms():
    layer = nn.BatchNorm2d(2)
    layer.running_mean = torch.tensor([1.0, 0.0])
    layer.running_var = torch.tensor([2.0, 3.0])
    teacher = nn.Sequential(layer, nn.Identity()).eval()
    images = torch.randn(5, 2, 4, 4)
    with FeatureStatistics(teacher) as statistics:
        out = teacher(images)
    mean, var = images.mean((0, 2, 3)), images.var((0, 2, 3), unbiased=False)
    expected = (layer.running_mean - mean).norm() + (layer.running_var - var).norm()
    assert statistics.penalty(out).item() == pytest.approx(expected.item(), rel=1e-6)
    assert not layer._forward_pre_hooks


def test_a_teacher_without_batch_norm_has_no_penalty():
    teacher = frozen("mlp")
    with FeatureStatistics(teacher) as statistics:
        out = teacher(torch.zeros(2, 1, 8, 8))
    assert statistics.penalty(out).item() == 0


@pytest.mark.parametrize("name", ["resnet8", "mlp"])
def test_gradient_matches_finite_differences(name):
    teacher = frozen(name).double()
    dreams = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    gradient = dream_gradient(teacher, dreams, ALL)
    direction = torch.randn_like(dreams)
    step = 1e-6
    ahead = client_loss(teacher, dreams + step * direction, ALL)
    behind = client_loss(teacher, dreams - step * direction, ALL)
    slope = (ahead - behind) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_the_gradient_leaves_the_teacher_untouched():
    teacher = frozen("resnet8")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    dream_gradient(teacher, torch.rand(4, 1, 8, 8), ALL)
    assert all((before[name] == value).all() for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("off", ["entropy", "feature_statistics", "class_balance"])
def test_each_term_can_be_switched_off(off):
    teacher, dreams = frozen("resnet8"), torch.rand(4, 1, 8, 8)
    values = {"entropy": 1.0, "feature_statistics": 1.0, "class_balance": 1.0}
    full = client_loss(teacher, dreams, LossWeights(**values))
    alone = client_loss(
        teacher, dreams, LossWeights(**{name: float(name == off) for name in values})
    )
    rest = client_loss(teacher, dreams, LossWeights(**(values | {off: 0.0})))
    assert alone.item() != 0
    assert (alone + rest).item() == pytest.approx(full.item(), rel=1e-5)
