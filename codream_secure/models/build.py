"""Build a model by the name of its architecture.

Opacus hooks into every layer to get per-example gradients, so no model here works in place.
"""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import nn

from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.models.custom import custom_builder, is_custom
from codream_secure.models.layers import Norm, keep_usual_layout
from codream_secure.models.lenet import LeNet5
from codream_secure.models.mlp import linear, mlp
from codream_secure.models.mobilenet import MobileNetV2
from codream_secure.models.names import check_name
from codream_secure.models.resnet import Bottleneck, ResNet
from codream_secure.models.vgg import VGG
from codream_secure.models.wideresnet import WideResNet

# Name: constructor and default `width`. `linear` is not here, since it has no width.
_MODELS: Final[dict[str, tuple[Callable[..., nn.Module], int]]] = {
    "resnet8": (partial(ResNet, blocks=(1, 1, 1)), 8),
    "resnet18": (partial(ResNet, blocks=(2, 2, 2, 2)), 64),
    "resnet34": (partial(ResNet, blocks=(3, 4, 6, 3)), 64),
    "resnet50": (partial(ResNet, blocks=(3, 4, 6, 3), block=Bottleneck), 64),
    "wrn16-1": (partial(WideResNet, depth=16, widening=1), 16),
    "wrn16-2": (partial(WideResNet, depth=16, widening=2), 16),
    "wrn40-1": (partial(WideResNet, depth=40, widening=1), 16),
    "wrn40-2": (partial(WideResNet, depth=40, widening=2), 16),
    "vgg8": (partial(VGG, convolutions=(1, 1, 1, 1, 1)), 64),
    "vgg11": (partial(VGG, convolutions=(1, 1, 2, 2, 2)), 64),
    "vgg13": (partial(VGG, convolutions=(2, 2, 2, 2, 2)), 64),
    "vgg16": (partial(VGG, convolutions=(2, 2, 3, 3, 3)), 64),
    "vgg19": (partial(VGG, convolutions=(2, 2, 4, 4, 4)), 64),
    "mobilenetv2": (MobileNetV2, 32),
    "lenet5": (LeNet5, 6),
    "mlp": (mlp, 64),
}


def build_model(
    name: str,
    spec: InputSpec,
    *,
    width: int | None = None,
    norm: Norm = "batch",
    seed: int | None,
) -> nn.Module:
    """Build a freshly initialised model, on the CPU and in training mode.

    Its `forward` takes scaled images, float32 N x C x H x W with the sizes in `spec`, and returns
    logits, float32 N x classes. Weights are torch's defaults for each layer: Kaiming-uniform
    convolutions and linear layers, norms that start as the identity. In training mode, batch
    norm needs at least two images. Images that are too small for an architecture are padded with
    zeros inside its `forward` (`layers.PadTo`).

    Args:
        name: One of `MODEL_NAMES`, or `module:function` (see `codream_secure.models.custom`).
        spec: Shape of an image, and the number of classes.
        width: Channels of the first layer (every other layer follows in proportion), or the
            hidden units of `mlp`. None: the architecture's default. `linear` and user-defined
            models have no width.
        norm: `batch`, or `group` for DP-SGD, where examples must not mix. `mlp` and `linear`
            have no norm. User-defined models ignore `norm`.
        seed: The same seed gives the same weights (of a user-defined model, if it draws them
            from torch). None: the operating system gives a seed. The global random state of
            torch does not change.

    Returns:
        The model.

    Raises:
        UserError: The name is unknown, the model cannot have this width, or a user-defined
            model cannot be made or used.
    """
    _check(name, width)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Import before seeding: an imported module may draw random numbers itself.
        build = _builder(name, width, norm)
        # Not torch.manual_seed: it would also seed every accelerator.
        torch.default_generator.manual_seed(secrets.randbits(63) if seed is None else seed)
        model = build(spec)
    keep_usual_layout(model)
    return model


def _check(name: str, width: int | None) -> None:
    check_name(name)
    if width is not None and name not in _MODELS:
        msg = f"model {name} has no width: leave it out"
        raise UserError(msg)
    if width is not None and width < 1:
        msg = f"model {name} cannot have width {width}: leave it out or use a positive one"
        raise UserError(msg)


def _builder(name: str, width: int | None, norm: Norm) -> Callable[[InputSpec], nn.Module]:
    if is_custom(name):
        return custom_builder(name)
    if name == "linear":
        return linear
    build, default = _MODELS[name]
    return partial(build, width=default if width is None else width, norm=norm)


def blueprint(
    name: str, spec: InputSpec, *, width: int | None = None, norm: Norm = "batch"
) -> nn.Module:
    """Return a model without numbers, on the meta device; a user-defined one is built as it is.

    Arguments and errors are those of `build_model`.
    """
    _check(name, width)
    if is_custom(name):
        return build_model(name, spec, seed=0)
    with torch.device("meta"):
        return _builder(name, width, norm)(spec)


def parameter_count(model: nn.Module) -> int:
    """Return how many trainable numbers a model has, without BatchNorm's running statistics."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
