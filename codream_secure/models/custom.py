"""User-defined architectures, named `module:function` on the command line.

`function(spec)` takes an `InputSpec` and returns an `nn.Module` that maps scaled images, float32
N x C x H x W, to logits, float32 N x classes. In Python, `given_models` takes the function itself,
one without arguments, or a model.
"""

import importlib
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.models.trial import copy_of, try_model

Source = str | nn.Module | Callable[..., nn.Module]
"""A name, a model, or a function that makes one from an `InputSpec` or from nothing."""

_PROBE = 2
GIVEN_PREFIX = "python:"
# Name: function, for as long as `given_models` holds them.
_given: dict[str, Callable[[InputSpec], object]] = {}


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
        function = _given.get(name) or _function(name)
    return _tried(name, function)


def builder_of(name: str, model: Source) -> Callable[[InputSpec], nn.Module]:
    """Wrap a function or a model as `custom_builder` does; the name stands in errors."""
    return _tried(name, _taking_spec(model))


@contextmanager
def given_models(models: Sequence[Source]) -> Iterator[tuple[str, ...]]:
    """Give names to functions and models, which hold inside the context.

    A function that the command line could import keeps the name that it has there.

    Args:
        models: names stay as they are. Whoever is built from one model starts from its weights.

    Raises:
        UserError: something is neither a name nor a model nor a function.
    """
    names = []
    added = []
    try:
        for model in models:
            if isinstance(model, str):
                names.append(model)
            elif imported := _imported_name(model):
                names.append(imported)
            else:
                function = _taking_spec(model)
                names.append(_new_name(model))
                _given[names[-1]] = function
                added.append(names[-1])
        yield tuple(names)
    finally:
        for name in added:
            del _given[name]


def listed(models: str | Source | Sequence[Source] | None) -> tuple[Source, ...]:
    """Return models as a tuple: of names with commas, of one model or function, or of several."""
    if models is None:
        return ()
    if isinstance(models, str):
        return tuple(name.strip() for name in models.split(","))
    if isinstance(models, nn.Module) or callable(models):
        return (models,)
    return tuple(models)


def _taking_spec(model: Source) -> Callable[[InputSpec], object]:
    """Return a function from a spec to a model."""
    if isinstance(model, nn.Module):
        return lambda _: model
    if not callable(model):
        raise UserError(
            f"models: a {type(model).__name__} is no model; give a name, an nn.Module or a "
            "function that returns one"
        )
    return model if _wants_spec(model) else lambda _: model()


def _wants_spec(function: Callable[..., object]) -> bool:
    """Tell whether a function has a parameter that must be given, which is the spec."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # built-in: nothing is known of it
        return True
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in places and p.default is inspect.Parameter.empty for p in parameters)


def _imported_name(model: Source) -> str | None:
    """Return `module:function` if that is the same function for the command line, else None."""
    module, name = getattr(model, "__module__", None), getattr(model, "__name__", None)
    if isinstance(model, nn.Module) or module in {None, "__main__"} or not callable(model):
        return None
    same = getattr(sys.modules.get(str(module)), str(name), None) is model
    return f"{module}:{name}" if same and _wants_spec(model) else None


def _new_name(model: Source) -> str:
    called = getattr(model, "__name__", type(model).__name__)
    word = "".join(letter for letter in called if letter.isalnum() or letter in "_-")
    tried = (f"{GIVEN_PREFIX}{word}{number}" for number in ("", *range(2, len(_given) + 3)))
    return next(name for name in tried if name not in _given)


def _tried(name: str, function: Callable[[InputSpec], object]) -> Callable[[InputSpec], nn.Module]:
    """Wrap a function, so that each model is first tried as a run uses it."""

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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # user code may raise anything, SystemExit too
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
    here = Path.cwd() / f"{module_name.replace('.', '/')}.py"
    if here.is_file() and not here.samefile(getattr(module, "__file__", None) or os.devnull):
        raise UserError(f"{here.name} has the name of another module; rename the file")
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
