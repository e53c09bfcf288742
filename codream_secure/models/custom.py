"""User-defined architectures, named `module:function` on the command line.

`function(spec)` takes an `InputSpec` and returns an `nn.Module` that maps scaled images, float32
N x C x H x W, to logits, float32 N x classes.
"""

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
from codream_secure.models.trial import copy_of, try_model

_PROBE = 2


def is_custom(name: str) -> bool:
    """Return whether a model's name is that of a user-defined model."""
    return ":" in name


def custom_builder(name: str) -> Callable[[InputSpec], nn.Module]:
    """Import a user's function and wrap it, so that each model is first tried as a run uses it.

    The wrapper returns a new copy in training mode, even if the function always returns the same
    model. It raises the same errors (`codream_secure.models.trial` has the trial).

    Args:
        name: `module:function`. The module is looked for in the current folder first, then
            among the installed ones.

    Returns:
        A function from a spec to a model.

    Raises:
        UserError: The function cannot be imported or fails, or its model cannot be used: it is
            no `nn.Module`, has nothing to train, tensors outside the CPU, or a wrong output.
    """
    with _in_current_folder(name):
        function = _function(name)

    def build(spec: InputSpec) -> nn.Module:
        with _in_current_folder(name):
            model = _as_module(_called(function, spec))
            _check_output(model.eval(), spec)
            own = copy_of(model)
            try_model(own, spec)
            return own.train()

    return build


@contextmanager
def _in_current_folder(name: str) -> Iterator[None]:
    """Import from the current folder first; turn any error into one line that names the model."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    except UserError as error:
        raise UserError(f"model {name}: {error}") from error
    except Exception as error:  # user code may raise anything
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
            raise  # the module exists, but something that it imports does not
        text = f"no module {error.name}; install it or put it into the current folder"
        raise UserError(text) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"module {module_name} has no function {attribute}; check its name")
    return function  # type: ignore[no-any-return]


def _called(function: Callable[[InputSpec], object], spec: InputSpec) -> object:
    """Return what a user's function returns; it cannot change torch's settings for the run."""
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    try:
        return function(spec)
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)


def _as_module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UserError(f"the function must return a torch.nn.Module, not {type(model).__name__}")
    for kind, tensors in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        for name, tensor in tensors():
            if tensor.device.type != "cpu":
                text = f"{kind} {name} is on {tensor.device}; leave it on the CPU, the run moves it"
                raise UserError(text)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("it has no parameters to train")
    return model


def _check_output(model: nn.Module, spec: InputSpec) -> None:
    """Check on two images that the logits have the right shape and a gradient for dreams."""
    images = torch.zeros(_PROBE, spec.channels, spec.height, spec.width, requires_grad=True)
    logits = model(images)
    if not isinstance(logits, Tensor):
        raise UserError(f"its output must be a tensor of logits, not {type(logits).__name__}")
    expected = (_PROBE, spec.classes)
    if tuple(logits.shape) != expected:
        text = f"for {_PROBE} images its output has shape {tuple(logits.shape)}, not {expected}"
        raise UserError(f"{text}; {spec.classes} is the number of classes")
    if logits.dtype != torch.float32:
        raise UserError(f"its output must be float32, not {logits.dtype}")
    if not logits.requires_grad:
        raise UserError("its output has no gradient; dreams need one with respect to the image")
    (gradient,) = torch.autograd.grad(logits.sum(), images, allow_unused=True)
    if gradient is None:
        raise UserError("its output does not depend on the image, or it cuts the gradient")
