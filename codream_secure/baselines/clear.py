"""Messages of methods without masks; they are encoded so that their bytes are counted."""

from collections.abc import Iterable

import msgspec
from torch import Tensor

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.requests import VERSION, ModelState, encode
from codream_secure.models.tensors import float_bytes
from protocols.phases import Phase

_FULL = 32


class ModelUpdate(msgspec.Struct, frozen=True, array_like=True, tag="model_update"):
    """What a client sends in the clear at full precision: float32 tensors and its weight."""

    version: int
    round: int
    tensors: tuple[bytes, ...]
    weight: int


def send(
    meters: Meters, tensors: Iterable[Tensor], *, client: int, down: bool, number: int
) -> None:
    """Count one float32 model that is sent to one client (``down``) or by one client."""
    packed = tuple(float_bytes(value) for value in tensors)
    size = len(encode(ModelState(VERSION, number, _FULL, packed)))
    phase = "broadcast" if down else Phase.MASKED_INPUT.value
    meters.ledger.record(
        phase,
        "down" if down else "up",
        size,
        client=client,
        payload=sum(map(len, packed)),
    )
