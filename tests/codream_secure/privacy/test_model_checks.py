"""Which models DP-SGD can train: every gradient must belong to one example."""

import copy

import pytest
import torch
from torch import nn

from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.models.build import build_model
from codream_secure.models.names import MODEL_NAMES
from codream_secure.privacy.model_checks import check_private_model, check_private_step

SPEC = InputSpec(1, 8, 8, 10)


class Normalized(nn.Module):
    """One layer before a classifier."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.norm(x).flatten(1))


class OwnNorm(nn.BatchNorm2d):
    """A subclass, which Opacus' validator does not look at."""


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(1),
        nn.BatchNorm2d(1, affine=False),
        nn.BatchNorm2d(1).requires_grad_(False),
        OwnNorm(1),
        nn.InstanceNorm2d(1, track_running_stats=True),
    ],
)
def test_every_layer_with_batch_statistics_is_refused(norm):
    with pytest.raises(UserError, match="'norm' keeps batch statistics"):
        check_private_model(Normalized(norm))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_with_group_norm_is_accepted(name):
    width = None if name in {"mlp", "linear"} else 4
    check_private_model(build_model(name, SPEC, norm="group", seed=0, width=width))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_keeps_its_mode(training):
    model = build_model("mlp", SPEC, seed=0).train(training)
    check_private_model(model)
    assert model.training == training


class Centred(nn.Module):
    """A layer of a user's own that subtracts the mean over the minibatch."""

    def forward(self, x):
        return x - x.mean(dim=0)


class InPlace(nn.Module):
    """A layer that adds to another layer's output in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)

    def forward(self, x):
        out = self.first(x.flatten(1))
        out += x.flatten(1)
        return out.reshape(x.shape)


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (Centred(), "one example's logits depend on another example"),
        (InPlace(), "in place, where hooks still need it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_trial_step_finds_what_layers_do_not_show(layer, told):
    with pytest.raises(UserError, match=told) as refused:
        check_private_step(Normalized(layer), SPEC)
    assert "\n" not in str(refused.value)


def test_a_trial_step_leaves_the_model_as_it_was():
    model = build_model("lenet5", SPEC, norm="group", seed=0).eval()
    before = copy.deepcopy(model.state_dict())
    check_private_step(model, SPEC)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hooks = [*model._forward_hooks.values(), *model._backward_hooks.values()]
    assert not hooks
