"""The model architectures, by name.

Opacus hooks into every layer to get per-example gradients, so no model here works in place.
"""

import secrets
from collections.abc import Callable
from typing import Final

import torch
from torch import nn

from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.models.layers import Norm
from codream_secure.models.lenet import LeNet5
from codream_secure.models.mlp import linear, mlp
from codream_secure.models.resnet import resnet8, resnet18
from codream_secure.models.wideresnet import wrn16

__all__ = ["MODEL_NAMES", "Norm", "build_model", "parameter_count"]

# Name: the function that builds it, and the default of its `width`.
_MODELS: Final[dict[str, tuple[Callable[[InputSpec, int, Norm], nn.Module], int]]] = {
    "resnet8": (resnet8, 8),
    "resnet18": (resnet18, 64),
    "wrn16-1": (wrn16, 16),
    "lenet5": (LeNet5, 6),
    "mlp": (mlp, 64),
}
MODEL_NAMES: Final = (*_MODELS, "linear")


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
    norm needs at least two images.

    Args:
        name: One of `MODEL_NAMES`.
        spec: Shape of an image, and the number of classes.
        width: Channels of the first layer (every other layer follows in proportion), or the
            hidden units of `mlp`; None is the architecture's own. `linear` has none.
        norm: `batch`, or `group` for training with DP-SGD, where examples may not mix. `mlp`
            and `linear` have no norm.
        seed: The same seed gives the same weights; None takes one from the operating system.
            Torch's global random state is left as it was.

    Returns:
        The model.

    Raises:
        UserError: The name is unknown, or the width is not one this model can have.
    """
    if name not in MODEL_NAMES:
        msg = f"unknown model {name!r}: use {', '.join(MODEL_NAMES)}"
        raise UserError(msg)
    if width is not None and (width < 1 or name == "linear"):
        msg = f"model {name} cannot have width {width}: leave it out or use a positive one"
        raise UserError(msg if name != "linear" else "model linear has no width: leave it out")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would also seed every accelerator.
        torch.default_generator.manual_seed(secrets.randbits(63) if seed is None else seed)
        if name == "linear":
            return linear(spec)
        build, default = _MODELS[name]
        return build(spec, default if width is None else width, norm)


def parameter_count(model: nn.Module) -> int:
    """Count the trainable numbers of a model; the running statistics of batch norm are none."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
