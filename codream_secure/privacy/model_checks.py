"""Which models DP-SGD can train: every gradient must belong to one example."""

import copy
import textwrap

import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError

# Random images in the trial of `check_private_step`.
_PROBE = 3


def check_private_model(model: nn.Module) -> None:
    """Refuse a model in which the gradient of one example depends on other examples.

    A user's own layer whose `forward` mixes examples passes; `check_private_step` finds it.

    Args:
        model: in training or evaluation mode, which it keeps.

    Raises:
        UserError: names the layer and the way out.
    """
    # Opacus' validator looks at trainable layers by exact type only. A frozen BatchNorm, one
    # without affine parameters or a subclass passes it, and still keeps batch statistics.
    for name, layer in model.named_modules():
        is_batch_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
        if is_batch_norm or getattr(layer, "track_running_stats", False):
            raise UserError(
                f"layer {name or type(layer).__name__!r} keeps batch statistics, which are not "
                "private; put GroupNorm in its place (--norm group, in models of this package)"
            )
    errors = _opacus_errors(model)
    if errors:
        raise UserError(f"the model cannot be trained with DP-SGD: {errors[0]}")


def check_private_step(model: nn.Module, spec: InputSpec) -> None:
    """Try one step on random images and a copy of the model, for a user's own architecture.

    The trial cannot find all faults: a layer that mixes examples only for some images can pass.

    Args:
        model: passes `check_private_model`; on any device.
        spec: shape of an image, and the number of classes.

    Raises:
        UserError: one example's logits depend on another example, or Opacus cannot compute
            per-example gradients.
    """
    tried = copy.deepcopy(model).train()
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(0)
    shape = (_PROBE, spec.channels, spec.height, spec.width)
    images = torch.randn(shape, generator=draw).to(device).requires_grad_()
    try:
        mixing = torch.autograd.grad(tried(images)[0].sum(), images)[0][1:].abs().max() > 0
        _per_example_gradients(tried, images)
    except Exception as error:  # of Opacus, or the user's code under its hooks
        text = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        if "modified inplace" in text:
            text = _in_place(model)
        raise UserError(f"the model cannot be trained with DP-SGD: {text}") from error
    if mixing:
        raise UserError(
            "the model cannot be trained with DP-SGD: one example's logits depend on another "
            "example; let every layer treat examples apart"
        )


def _in_place(model: nn.Module) -> str:
    """Return an error text that names the layer that works in place, and the remedy."""
    names = [name for name, layer in model.named_modules() if getattr(layer, "inplace", False)]
    where = f"layer {names[0]!r} changes" if names else "its forward changes"
    return (
        f"{where} a layer's output in place, where hooks still need it; give it inplace=False, "
        "and write out = out + x, not out += x"
    )


def _per_example_gradients(model: nn.Module, images: Tensor) -> None:
    hooked = GradSampleModule(model, loss_reduction="sum")
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    loss = F.cross_entropy(hooked(images), labels, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        sampled = getattr(parameter, "grad_sample", None)
        if parameter.requires_grad and (not isinstance(sampled, Tensor) or len(sampled) != _PROBE):
            raise ValueError(f"parameter {name} gets no gradient for each example")


def _opacus_errors(model: nn.Module) -> list[Exception]:
    mode = model.training
    model.training = True  # Opacus refuses any model in evaluation mode; `step` sets the mode
    try:
        unsupported = ModuleValidator.validate(model, strict=False)
        return [*unsupported, *GradSampleModule.validate(model, strict=False)]
    finally:
        model.training = mode
