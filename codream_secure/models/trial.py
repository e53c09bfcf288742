"""Tries a user's model as a run will use it, before anything is trained.

Every step of `try_model` works on copies and on random images, so that the model itself, its
running statistics and torch's random state stay as they were.
"""

import copy
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.models.evaluate import logits_of
from codream_secure.models.layers import in_plain_strides
from codream_secure.storage.checkpoint import decode_state, encode_state

_BATCH = 3
_STEPS = 2  # the second finds what the first left behind, such as a graph that was freed
# Tensors and layers that torch itself keeps in a module.
_OWN = ("_parameters", "_buffers", "_modules")
_FIXED = 0  # seed of layers that draw, such as dropout


class _Weights(msgspec.Struct):
    model: dict[str, Tensor]


def try_model(model: nn.Module, spec: InputSpec, *, bf16: bool = False) -> None:
    """Train, copy, store and evaluate copies of a model, in both memory layouts.

    A model that works in the usual layout alone gets a hook that keeps it in that layout.

    Args:
        model: on the CPU, with all parameters materialized; its mode does not matter.
        spec: shape of an image, and the number of classes.
        bf16: whether forward passes run in bfloat16.

    Raises:
        UserError: names the layer that cannot be used, and the way out.
    """
    with torch.random.fork_rng(devices=[]):
        _check_state(model)
        trained = copy_of(model).train()
        _train(trained, _images(spec), bf16=bf16)
        _check_restored(model, copy_of(trained), spec)
        if not _works_channels_last(model, spec, bf16=bf16):
            model.register_forward_pre_hook(in_plain_strides)
            _train(copy_of(model).train(), _channels_last(_images(spec)), bf16=bf16)


def trains_on_one(model: nn.Module, spec: InputSpec) -> str | None:
    """Return why a model cannot train on a single image; None if it can.

    Args:
        model: of any architecture, on any device.
        spec: shape of an image, and the number of classes.
    """
    image = _images(spec)[:1].to(next(model.parameters()).device)
    try:
        with torch.random.fork_rng(devices=[]), _named_layer(tried := copy_of(model).train()):
            tried(image)
    except UserError as error:
        return str(error)
    return None


def copy_of(model: nn.Module) -> nn.Module:
    """Return a deep copy.

    Raises:
        UserError: the model cannot be copied; names the tensor that a layer keeps.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # user code may raise anything
        for name, layer in model.named_modules():
            for attribute, value in vars(layer).items():
                if attribute not in _OWN and _keeps_graph(value):
                    raise UserError(
                        f"{_called(name)} keeps a tensor of its last batch in {attribute!r}, so "
                        f"that it cannot be copied; store {attribute}.detach() or nothing"
                    ) from error
        raise UserError(
            f"it cannot be copied ({_shortened(error)}); copy.deepcopy of it must work"
        ) from error


def _keeps_graph(value: object) -> bool:
    """Tell whether a value is a tensor with its graph, or holds one in lists, sets or dicts."""
    if isinstance(value, Tensor):
        return not value.is_leaf
    if isinstance(value, Mapping):
        return any(map(_keeps_graph, value.values()))
    return (
        isinstance(value, Collection)
        and not isinstance(value, str | bytes)
        and any(map(_keeps_graph, value))
    )


def _check_state(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            owner = name.rpartition(".")[0]
            raise UserError(
                f"{_called(owner)} puts a {type(value).__name__} into its state_dict "
                "(get_extra_state); a run stores tensors alone: use register_buffer"
            )


def _train(model: nn.Module, images: Tensor, *, bf16: bool) -> None:
    """Take the steps that learners take; each passes twice through the model."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
    for _ in range(_STEPS):
        with _named_layer(model):
            logits = [_logits(model, images, bf16=bf16) for _ in range(2)]
        with _told("its training step"):
            optimizer.zero_grad()
            labels = torch.zeros(len(images), dtype=torch.int64)
            loss = F.cross_entropy(logits[0], labels) + F.log_softmax(logits[1], dim=1).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _logits(model: nn.Module, images: Tensor, *, bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found: object = model(images)
    if not isinstance(found, Tensor):
        raise UserError(
            f"in training mode its output is a {type(found).__name__}, not a tensor of logits; "
            "return the logits alone, without auxiliary outputs"
        )
    if len(found) != len(images) or found.dim() != 2:  # noqa: PLR2004 - images x classes
        raise UserError(
            f"in training mode its output for {len(images)} images has shape {tuple(found.shape)}"
        )
    if not found.requires_grad:
        raise UserError("in training mode its output has no gradient")
    return found.float() if bf16 else found


def _check_restored(model: nn.Module, trained: nn.Module, spec: InputSpec) -> None:
    """Check that the state goes to disk and back, and that one image can be evaluated."""
    with _told("storing its state"):
        stored = decode_state(encode_state(_Weights(dict(trained.state_dict()))), _Weights)
    restored = copy_of(model)
    with _told("loading its state"):
        restored.load_state_dict(stored.model)
    image = _images(spec)[:1].requires_grad_()
    before, after = (_evaluated(one.eval(), image) for one in (trained, restored))
    with _told("the gradient of its logits"):
        torch.autograd.grad(before.sum(), image)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UserError(
            "its logits change when its state is stored and loaded again; register every tensor "
            "that it needs as a parameter or a buffer"
        )


def _evaluated(model: nn.Module, image: Tensor) -> Tensor:
    torch.default_generator.manual_seed(_FIXED)
    with _named_layer(model):
        return logits_of(model, image, bf16=False)


def _works_channels_last(model: nn.Module, spec: InputSpec, *, bf16: bool) -> bool:
    tried = copy_of(model).to(memory_format=torch.channels_last).train()
    try:
        _train(tried, _channels_last(_images(spec)), bf16=bf16)
        logits_of(tried.eval(), _channels_last(_images(spec))[:1], bf16=bf16)
    except (UserError, RuntimeError):
        return False
    return True


def _images(spec: InputSpec) -> Tensor:
    draw = torch.Generator().manual_seed(_FIXED)
    return torch.randn(_BATCH, spec.channels, spec.height, spec.width, generator=draw)


def _channels_last(images: Tensor) -> Tensor:
    # Not `to(memory_format=...)`: that leaves some one-channel images as they are.
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@contextmanager
def _named_layer(model: nn.Module) -> Iterator[None]:
    """Turn an error of a forward pass into one that names the innermost layer it came from."""
    entered: list[str] = []
    handles = []
    for name, layer in model.named_modules():
        handles.append(layer.register_forward_pre_hook(_enter(entered, name)))
        handles.append(layer.register_forward_hook(_leave(entered)))
    try:
        with _told(lambda: _called(entered[-1] if entered else "")):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(entered: list[str], name: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        entered.append(name)

    return hook


def _leave(entered: list[str]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        entered.pop()

    return hook


@contextmanager
def _told(what: str | Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # user code may raise anything
        where = what if isinstance(what, str) else what()
        raise UserError(f"{where} raised {_shortened(error)}") from error


def _called(name: str) -> str:
    return f"layer {name!r}" if name else "its forward"


def _shortened(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
