import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn import functional as F

from codream_secure.data import InputSpec
from codream_secure.errors import UserError
from codream_secure.models import MODEL_NAMES, build_model, parameter_count
from codream_secure.models.layers import PadTo, group_count

DIGITS = InputSpec(1, 8, 8, 10)
GREY = InputSpec(1, 28, 28, 10)
COLOUR = InputSpec(3, 32, 32, 10)


def images(spec, count=2):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, spec.channels, spec.height, spec.width, generator=generator)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("spec", [DIGITS, GREY, COLOUR], ids=["8", "28", "32"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_logits_and_gradients_of_input_and_parameters(name, spec, norm):
    # The norms under test are the same at any width, and width 64 is slow.
    model = build_model(name, spec, norm=norm, seed=0, width=16 if name == "resnet18" else None)
    x = images(spec).requires_grad_()
    logits = model(x)
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize(
    ("name", "spec", "count"),
    [
        ("resnet8", DIGITS, 19_810),
        ("resnet18", COLOUR, 11_173_962),
        ("resnet18", GREY, 11_172_810),
        ("wrn16-1", COLOUR, 175_066),
        ("lenet5", GREY, 61_728),
        ("mlp", DIGITS, 4_810),
        ("linear", DIGITS, 650),
    ],
)
def test_parameter_counts(name, spec, count):
    assert parameter_count(build_model(name, spec, seed=0)) == count


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_seed_decides_and_the_global_generator_is_untouched(name):
    before = torch.get_rng_state()
    width = 8 if name == "resnet18" else None
    first, again, other, fresh, fresh_too = (
        nn.utils.parameters_to_vector(
            build_model(name, DIGITS, seed=seed, width=width).parameters()
        )
        for seed in (7, 7, 8, None, None)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(fresh, fresh_too)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_group_norm_leaves_no_batch_norm_and_examples_do_not_mix(name):
    model = build_model(name, GREY, norm="group", seed=0, width=8 if name == "resnet18" else None)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    both = model(images(GREY))
    torch.testing.assert_close(model(images(GREY)[:1]), both[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # Opacus's, on a first layer
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_opacus_sees_every_example_s_gradient(name):
    model = build_model(name, DIGITS, norm="group", seed=0, width=None if name == "linear" else 4)
    assert ModuleValidator.validate(model) == []
    sampled = GradSampleModule(model, loss_reduction="sum")
    F.cross_entropy(sampled(images(DIGITS, 3)), torch.tensor([0, 1, 2]), reduction="sum").backward()
    for parameter in model.parameters():
        assert parameter.grad_sample.shape[0] == 3
        torch.testing.assert_close(
            parameter.grad_sample.sum(dim=0), parameter.grad, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_no_module_works_in_place(name):
    model = build_model(name, DIGITS, seed=0, width=8 if name == "resnet18" else None)
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    x = images(DIGITS)
    kept = x.clone()
    model(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name != "linear"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_any_positive_width_and_any_shape_works(name, width, norm):
    spec = InputSpec(2, 7, 35, 3)
    assert build_model(name, spec, width=width, norm=norm, seed=0)(images(spec)).shape == (2, 3)


def test_user_errors():
    with pytest.raises(UserError, match=", ".join(MODEL_NAMES)):
        build_model("vgg", DIGITS, seed=0)
    with pytest.raises(UserError, match="width 0"):
        build_model("mlp", DIGITS, width=0, seed=0)
    with pytest.raises(UserError, match="no width"):
        build_model("linear", DIGITS, width=8, seed=0)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (6, 2), (8, 4), (12, 4), (16, 8), (32, 16), (512, 32)]
)
def test_group_counts(channels, groups):
    assert group_count(channels) == groups
    nn.GroupNorm(groups, channels)


def test_padding_is_central_and_leaves_large_images_alone():
    padded = PadTo(4)(torch.ones(1, 1, 2, 5))
    assert padded.shape == (1, 1, 4, 5)
    assert padded[0, 0, :, 0].tolist() == [0, 1, 1, 0]
