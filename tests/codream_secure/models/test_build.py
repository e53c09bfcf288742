import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn import functional as F

from codream_secure.data import InputSpec
from codream_secure.dreaming.feature_statistics import FeatureStatistics
from codream_secure.errors import UserError
from codream_secure.models.build import _MODELS, build_model, parameter_count
from codream_secure.models.layers import PadTo, group_count
from codream_secure.models.names import MODEL_NAMES

DIGITS = InputSpec(1, 8, 8, 10)
GREY = InputSpec(1, 28, 28, 10)
COLOUR = InputSpec(3, 32, 32, 10)
LARGE = InputSpec(3, 64, 64, 10)

# The layers under test are the same at any width, and the architectures' own are slow.
NARROW = {"resnet8": 4, "lenet5": 6, "mlp": 16, "linear": None}


def narrow(name, spec, **options):
    return build_model(name, spec, width=NARROW.get(name, 2), seed=0, **options)


def images(spec, count=2):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, spec.channels, spec.height, spec.width, generator=generator)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("spec", [DIGITS, GREY, COLOUR, LARGE], ids=["8", "28", "32", "64"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_logits_and_gradients_of_input_and_parameters(name, spec, norm, training):
    model = narrow(name, spec, norm=norm)
    assert model.training
    model.train(training)
    x = images(spec, 4).requires_grad_()
    logits = model(x)
    assert logits.shape == (4, 10)
    assert logits.dtype == torch.float32
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all()


COUNTS = [
    ("resnet8", DIGITS, 19_810),
    ("resnet18", COLOUR, 11_173_962),
    ("resnet18", GREY, 11_172_810),
    ("resnet34", COLOUR, 21_282_122),
    ("resnet50", COLOUR, 23_520_842),
    ("wrn16-1", COLOUR, 175_066),
    ("wrn16-2", COLOUR, 691_674),
    ("wrn40-1", COLOUR, 563_930),
    ("wrn40-2", COLOUR, 2_243_546),
    ("vgg8", COLOUR, 3_918_858),
    ("vgg11", COLOUR, 9_231_114),
    ("vgg13", COLOUR, 9_416_010),
    ("vgg16", COLOUR, 14_728_266),
    ("vgg19", COLOUR, 20_040_522),
    ("mobilenetv2", COLOUR, 2_236_682),
    ("lenet5", GREY, 61_728),
    ("mlp", DIGITS, 4_810),
    ("linear", DIGITS, 650),
]


@pytest.mark.parametrize(("name", "spec", "count"), COUNTS)
def test_parameter_counts(name, spec, count):
    assert parameter_count(build_model(name, spec, seed=0)) == count


def test_the_names_are_those_that_help_lists():
    assert (*_MODELS, "linear") == MODEL_NAMES


def test_every_architecture_has_its_parameters_counted():
    assert {name for name, *_ in COUNTS} == set(MODEL_NAMES)


@pytest.mark.parametrize("name", [n for n in MODEL_NAMES if n not in {"mlp", "linear"}])
def test_feature_statistics_see_every_batch_norm(name):
    model = narrow(name, DIGITS).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with FeatureStatistics(model) as statistics:
        model(images(DIGITS))
    assert len(statistics.moments) == len(norms) > 0


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_seed_decides_and_the_global_generator_is_untouched(name):
    before = torch.get_rng_state()
    width = NARROW.get(name, 2)
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
    model = narrow(name, GREY, norm="group")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    both = model(images(GREY))
    torch.testing.assert_close(model(images(GREY)[:1]), both[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # Opacus's, on a first layer
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_opacus_sees_every_example_s_gradient(name):
    model = narrow(name, DIGITS, norm="group")
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
    model = narrow(name, DIGITS)
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
        build_model("vgg9", DIGITS, seed=0)
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


@pytest.mark.parametrize("name", ["resnet34", "vgg11", "mobilenetv2", "lenet5"])
def test_small_images_are_padded_inside_the_model(name):
    model = narrow(name, DIGITS).eval()
    x = images(DIGITS)
    (pad,) = (module for module in model.modules() if isinstance(module, PadTo))
    assert pad.minimum > 8
    larger = pad(x)
    assert larger.shape[-2:] == (pad.minimum, pad.minimum)
    assert torch.equal(model(larger), model(x))


def test_padding_is_central_and_leaves_large_images_alone():
    padded = PadTo(4)(torch.ones(1, 1, 2, 5))
    assert padded.shape == (1, 1, 4, 5)
    assert padded[0, 0, :, 0].tolist() == [0, 1, 1, 0]
