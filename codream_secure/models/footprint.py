"""What a model takes of memory, before it is built."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from codream_secure.data.spec import InputSpec
from codream_secure.models.build import blueprint
from codream_secure.models.custom import is_custom
from codream_secure.models.layers import Norm

_IMAGES = 2  # with one, batch normalization may refuse to train


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a model.

    Attributes:
        state: its weights and buffers.
        image: what a training step keeps of one image until its gradient is known.
    """

    state: int
    image: int


def footprint_of(name: str, spec: InputSpec, *, width: int | None, norm: Norm) -> Footprint:
    """Return what a model takes; the arguments are those of `models.build.build_model`.

    Raises:
        UserError: there is no such model.
    """
    # What a user's name stands for may change.
    return (_measured if is_custom(name) else _known)(name, spec, width, norm)


def _measured(name: str, spec: InputSpec, width: int | None, norm: Norm) -> Footprint:
    model = blueprint(name, spec, width=width, norm=norm)
    state = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    return Footprint(state, _kept(model, spec) // _IMAGES)


_known = cache(_measured)


def _kept(model: nn.Module, spec: InputSpec) -> int:
    """Return the bytes that a forward pass over so many images keeps for the backward pass."""
    device = next(model.parameters()).device
    images = torch.zeros(_IMAGES, spec.channels, spec.height, spec.width, device=device)
    known = {_place(value) for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        if _place(value) not in known:
            kept[_place(value)] = value
        return value

    with torch.random.fork_rng(devices=[]):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            logits = model.train()(images)
        del logits
    return sum(value.untyped_storage().nbytes() for value in kept.values())


def _place(value: Tensor) -> int:
    # On the meta device no storage has an address of its own.
    return int(value.untyped_storage()._cdata)  # noqa: SLF001
