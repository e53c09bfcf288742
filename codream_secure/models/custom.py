"""A user's own architecture, named `module:function` on the command line.

`function(spec)` takes an `InputSpec` and returns an `nn.Module` that maps scaled images, float32
N x C x H x W, to logits, float32 N x classes.
"""

import copy
import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError

_PROBE = 2


def is_custom(name: str) -> bool:
    """Tell whether a model's name asks for an import."""
    return ":" in name


def custom_builder(name: str) -> Callable[[InputSpec], nn.Module]:
    """Import a user's function and wrap it: a model that it makes is tried on blank images.

    The wrapper returns the model in training mode, a copy of its own even where the function
    always returns the same one, and raises the errors below as well.

    Args:
        name: `module:function`; the module is installed or lies in the current folder, which
            comes first.

    Returns:
        What makes a model from a spec.

    Raises:
        UserError: It cannot be imported or made, or it cannot be used: not a module, nothing to
            train, tensors elsewhere than on the CPU, another shape of output.
    """
    with _in_current_folder(name):
        function = _function(name)

    def build(spec: InputSpec) -> nn.Module:
        with _in_current_folder(name):
            model = _as_module(function(spec))
            _check_output(model.eval(), spec)
            return copy.deepcopy(model).train()

    return build


@contextmanager
def _in_current_folder(name: str) -> Iterator[None]:
    """Import from the current folder first; turn what is raised into a line naming the model."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    except UserError as error:
        raise UserError(f"model {name}: {error}") from error
    except Exception as error:  # the user's code may raise anything
        text = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise UserError(f"model {name} raised {type(error).__name__}: {text}") from error
    finally:
        sys.path.remove(folder)


def _function(name: str) -> Callable[[InputSpec], object]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError("write it as my_module:my_function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        text = f"no module {error.name}; install it or put it into the current folder"
        raise UserError(text) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"module {module_name} has no function {attribute}; check its name")
    return function  # type: ignore[no-any-return]


def _as_module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UserError(f"the function must return a torch.nn.Module, not {type(model).__name__}")
    for kind, tensors in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        for name, tensor in tensors():
            if tensor.device.type != "cpu":
                text = f"{kind} {name} is on {tensor.device}; leave it on the CPU, a run moves it"
                raise UserError(text)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("it has no parameters to train")
    return model


def _check_output(model: nn.Module, spec: InputSpec) -> None:
    """Try two images: logits of the right shape, with a gradient that dreams can follow."""
    images = torch.zeros(_PROBE, spec.channels, spec.height, spec.width, requires_grad=True)
    logits = model(images)
    if not isinstance(logits, Tensor):
        raise UserError(f"its output must be a tensor of logits, not {type(logits).__name__}")
    expected = (_PROBE, spec.classes)
    if tuple(logits.shape) != expected:
        text = f"of {_PROBE} images its output has shape {tuple(logits.shape)}, not {expected}"
        raise UserError(f"{text}; {spec.classes} is the number of classes")
    if logits.dtype != torch.float32:
        raise UserError(f"its output must be float32, not {logits.dtype}")
    if not logits.requires_grad:
        raise UserError("its output has no gradient; dreams need one with respect to the image")
    (gradient,) = torch.autograd.grad(logits.sum(), images, allow_unused=True)
    if gradient is None:
        raise UserError("its output does not depend on the image, or it cuts the gradient")
