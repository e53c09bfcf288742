"""What an interrupted run needs to continue: `RunState`, and how it becomes bytes.

Read `RunState` first. What it leaves out is derived from the configuration again, or must never be
stored: keys, masks and their seeds, signing keys, fresh DP noise. Every part of a run has a method
`state` and a method `restore`. A state refers to live tensors: encode it before the run continues.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

FORMAT = 3

_T = TypeVar("_T", bound=msgspec.Struct)
Pair = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]
OptimizerState = dict[int, dict[str, Tensor]]

_DIGEST_SIZE = 32
_PLAIN = "state"


class _State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record of plain values and tensors; unknown and missing fields are errors."""


class StreamState(_State, frozen=True):
    """Position in a stream of shuffled minibatches.

    ``order``: the permutation of the current epoch, int64. ``position``: how many of its examples
    were used. ``shuffle``: state of the generator that draws the next permutation.
    """

    order: Tensor
    position: int
    shuffle: Tensor


class NoiseState(_State, frozen=True):
    """Position of a Philox generator, without its key; for seeded DP experiments only."""

    counter: tuple[int, ...]
    buffer: tuple[int, ...]
    buffer_pos: int
    has_uint32: int
    uinteger: int


class LearnerState(_State, frozen=True):
    """A model, its optimizer's moments, and its source of minibatches or of DP noise.

    ``work``: examples that passed through models forward and backward, and forward only.
    """

    model: Weights
    optimizer: OptimizerState
    local_steps: int
    work: tuple[int, int]
    data: StreamState | None = None
    noise: NoiseState | None = None


class MessengerState(_State, frozen=True):
    """A client's copy of the common model, how it is trained, and the last sum it answered."""

    common: Weights
    optimizer: OptimizerState
    draw: Tensor
    answered: int


class CommonState(_State, frozen=True):
    """Clips of the next updates of the common model, by tensor, and the sums asked for so far."""

    scales: dict[str, float]
    sums: int


class DescentState(_State, frozen=True):
    """A model that moves along noisy sums, the mean of its last states, and its momentum."""

    model: Weights
    mean: Weights
    averaged: int
    optimizer: OptimizerState


class NoisyState(_State, frozen=True):
    """The common model under DP: part, variance and secret shares of every noisy sum, and so on.

    ``sent``: models that were sent. ``means``: class means; None: none were released.
    """

    made: list[tuple[int, int, int]]
    sent: int
    descent: DescentState
    means: Tensor | None


class ClientState(_State, frozen=True):
    """``memory``: means and variances for R_bn, by layer. ``answered``: broadcast digests (D1)."""

    learner: LearnerState
    memory: list[Pair]
    answered: list[bytes]
    messenger: MessengerState | None = None


class MemberState(_State, frozen=True):
    """A client and its independent twin."""

    client: ClientState
    twin: LearnerState


class GeneratorState(_State, frozen=True):
    """The meta-generator, its running average, and its optimizer's moments."""

    meta: Weights
    average: Weights
    optimizer: OptimizerState


class AttendanceState(_State, frozen=True):
    """Who holds keys, and for how many more steps. The keys themselves are never stored."""

    keys: int
    members: tuple[int, ...]
    prepared: tuple[int, ...]
    key_exchanges: int


class AggregatorState(_State, frozen=True):
    """Counters that never go back (D6), and attendance."""

    step: int
    aborted_steps: int
    unanswered_requests: int
    round_trips: int
    attendance: AttendanceState


class GroupState(_State, frozen=True):
    """State of the dreams of one group: labelled batches, clips, generator, sums."""

    buffer: list[Pair]
    clips: dict[str, float]
    rolled_back: int
    generator: GeneratorState | None
    aggregator: AggregatorState


class LedgerState(_State, frozen=True):
    """Bytes of encoded messages, with the names of `aggregation.byte_ledger.ByteLedger`.

    ``sizes``: round, phase, direction, and the bytes of each client. ``payload``: bytes by
    direction. ``avoidable``: reason, direction, bytes of all clients.
    """

    sizes: list[tuple[int, str, Literal["up", "down"], list[int]]]
    payload: dict[Literal["up", "down"], int]
    # Stored under the name of earlier versions, so that their checkpoints stay readable.
    avoidable: list[tuple[str, Literal["up", "down"], int]] = msgspec.field(name="savings")


class StatisticsState(_State, frozen=True):
    """Class means that were requested: None if the sum failed; and the shares of noise in it."""

    means: Tensor | None
    shares: int


class StopwatchState(_State, frozen=True):
    """Seconds of all processes of the run so far."""

    total: float
    seconds: dict[str, float]


class _Header(msgspec.Struct):
    """The part of a checkpoint that is read first."""

    format: int


class RunState(_State, frozen=True):
    """A run between two rounds.

    Attributes:
        config: all settings, resolved. Together with ``dataset``, a digest of the data, they
            decide whether a checkpoint belongs to a run. The partition follows from them.
        checkpoint_every: rounds between two checkpoints.
        resumed: how often the run was continued.
        history: the observer's measurements, one for each round.
        reported: weights by model after the round that the report quotes.
        last_dreams: pixels, uint8, and targets of the last labelled batch, for the picture.
        statistics: None if no class means were requested.
        bytes: of encoded messages.
        common: None if clients average no common model.
        noisy: None unless the common model is trained by noisy sums.
    """

    format: int
    config: dict[str, int | float | str | bool | None]
    dataset: str
    checkpoint_every: int
    resumed: int
    members: dict[int, MemberState]
    student: LearnerState
    groups: list[GroupState]
    history: list[dict[str, Any]]
    reported: dict[str, Weights] | None
    last_dreams: Pair | None
    statistics: StatisticsState | None
    unlabelled_rounds: int
    bytes: LedgerState
    stopwatch: StopwatchState
    common: CommonState | None = None
    noisy: NoisyState | None = None


def encode_state(state: msgspec.Struct) -> bytes:
    """Return a SHA-256 digest, followed by safetensors: numbered tensors, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()

    def store(value: object) -> str:
        if not isinstance(value, Tensor):
            raise TypeError(f"a {type(value).__name__} cannot be stored")
        name = str(len(tensors))
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        if place in places:  # tied weights: safetensors refuses tensors that share memory
            tensor = tensor.clone()
        places.add(place)
        tensors[name] = tensor
        return name

    plain = msgspec.json.encode(state, enc_hook=store)
    tensors[_PLAIN] = torch.frombuffer(bytearray(plain), dtype=torch.uint8)
    body: bytes = safetensors.save(tensors)
    return hashlib.sha256(body).digest() + body


def encode(state: RunState) -> bytes:
    """Return a run's state as `encode_state` does."""
    return encode_state(state)


def decode(data: bytes) -> RunState:
    """Return the state that `encode` turned into ``data``; its tensors are on the CPU.

    Raises:
        ValueError: the bytes are damaged, or are not a checkpoint of this format.
    """
    return decode_state(data, RunState, FORMAT)


def decode_state(data: bytes, kind: type[_T], version: int | None = None) -> _T:
    """Return the state that `encode_state` turned into ``data``; its tensors are on the CPU.

    Args:
        data: a digest and safetensors.
        kind: type of the state.
        version: the value that its field ``format`` must have; None: there is no such field.

    Raises:
        ValueError: the bytes are damaged, or hold something else.
    """
    digest, body = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its content does not match its digest")
    try:
        tensors: dict[str, Tensor] = safetensors.load(body)
        plain = tensors.pop(_PLAIN).numpy().tobytes()
        if version and msgspec.json.decode(plain, type=_Header).format != version:
            raise ValueError("it was written by another version of this program")
        state = msgspec.json.decode(plain, type=kind, dec_hook=_taker(tensors))
    except (SafetensorError, msgspec.DecodeError, KeyError) as error:
        raise ValueError(f"its content is not that of a checkpoint: {error}") from None
    if tensors:
        raise ValueError("it holds tensors that no field refers to")
    return state


def _taker(tensors: dict[str, Tensor]) -> Callable[[type, object], Tensor]:
    """Return a decoding hook that hands out each tensor once."""

    def take(kind: type, name: object) -> Tensor:
        if kind is not Tensor or not isinstance(name, str):
            raise ValueError("a tensor is missing")
        return tensors.pop(name).clone()

    return take


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Return the moments; the other settings of the optimizer follow from the configuration."""
    state: OptimizerState = optimizer.state_dict()["state"]
    return state


def restore_optimizer(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Restore the moments that `optimizer_state` returned.

    Raises:
        ValueError: they do not fit the parameters of this optimizer.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, moments in state.items():
        if not 0 <= index < len(parameters):
            raise ValueError("moments of a parameter that does not exist")
        if any(m.dim() and m.shape != parameters[index].shape for m in moments.values()):
            raise ValueError("moments with another shape than their parameter")
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
