"""What a run that was interrupted needs to go on: `RunState`, and its bytes.

Read `RunState` first: what is not in it is either derived from the configuration again, or must
never be stored (keys, masks, their seeds, signing keys, fresh DP noise). The parts have a `state`
and a `restore` each. A state refers to live tensors: encode it before the run goes on.
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
    """Plain values and tensors; unknown or missing fields are refused."""


class StreamState(_State, frozen=True):
    """Where shuffled local batches have come to.

    ``order``: int64, the running epoch's permutation. ``position``: examples of it that were used.
    ``shuffle``: state of the generator that draws the next permutation.
    """

    order: Tensor
    position: int
    shuffle: Tensor


class NoiseState(_State, frozen=True):
    """How far a Philox generator has come, without its key; of seeded DP experiments only."""

    counter: tuple[int, ...]
    buffer: tuple[int, ...]
    buffer_pos: int
    has_uint32: int
    uinteger: int


class LearnerState(_State, frozen=True):
    """A model, its optimizer's moments and its source of local batches or DP noise.

    ``work``: examples that went through models forward and backward, and forward alone.
    """

    model: Weights
    optimizer: OptimizerState
    local_steps: int
    work: tuple[int, int]
    data: StreamState | None = None
    noise: NoiseState | None = None


class ClientState(_State, frozen=True):
    """``memory``: R_bn's mean and variance a layer. ``answered``: digests of broadcasts (D1)."""

    learner: LearnerState
    memory: list[Pair]
    answered: list[bytes]


class MemberState(_State, frozen=True):
    """A client and its independent twin."""

    client: ClientState
    twin: LearnerState


class GeneratorState(_State, frozen=True):
    """The meta-generator, the running average of it, and its optimizer's moments."""

    meta: Weights
    average: Weights
    optimizer: OptimizerState


class AttendanceState(_State, frozen=True):
    """Who holds keys of how many more steps, and of a batch prepared on the way: never the keys."""

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
    """What belongs to the dreams of one group: labelled batches, clips, generator, sums."""

    buffer: list[Pair]
    clips: dict[str, float]
    rolled_back: int
    generator: GeneratorState | None
    aggregator: AggregatorState


class LedgerState(_State, frozen=True):
    """Bytes of encoded messages, all as `communication.ByteLedger` names them.

    ``sizes``: round, phase, direction, and bytes of every client. ``payload``: by direction.
    ``savings``: reason, direction, bytes of all clients.
    """

    sizes: list[tuple[int, str, Literal["up", "down"], list[int]]]
    payload: dict[Literal["up", "down"], int]
    savings: list[tuple[str, Literal["up", "down"], int]]


class StatisticsState(_State, frozen=True):
    """Class means that were asked for: images, None if nobody came to a sum, and noise shares."""

    means: Tensor | None
    shares: int


class StopwatchState(_State, frozen=True):
    """Seconds of all processes that the run has had."""

    total: float
    seconds: dict[str, float]


class _Header(msgspec.Struct):
    """What is read before anything else."""

    format: int


class RunState(_State, frozen=True):
    """A run between two rounds.

    Attributes:
        config: all settings, resolved. With ``dataset``, the digest of its content, they say
            whether a checkpoint belongs to a run; partition and validation parts follow from them.
        checkpoint_every: the interval that was asked for.
        resumed: how often the run was gone on with.
        history: the observer's measurements, a round each.
        reported: weights by model as they were after the round that a report quotes.
        last_dreams: pixels, uint8, and targets of the last labelled batch, for the picture.
        statistics: None where none were asked for.
        bytes: of encoded messages.
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


def encode_state(state: msgspec.Struct) -> bytes:
    """Return a SHA-256 digest, then safetensors: numbered tensors, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}

    def store(value: object) -> str:
        if not isinstance(value, Tensor):
            raise TypeError(f"a {type(value).__name__} cannot be stored")
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return name

    plain = msgspec.json.encode(state, enc_hook=store)
    tensors[_PLAIN] = torch.frombuffer(bytearray(plain), dtype=torch.uint8)
    body: bytes = safetensors.save(tensors)
    return hashlib.sha256(body).digest() + body


def encode(state: RunState) -> bytes:
    """Return a run's state as `encode_state` does."""
    return encode_state(state)


def decode(data: bytes) -> RunState:
    """Return the state that `encode` was given, its tensors on the CPU.

    Raises:
        ValueError: the bytes are damaged, or are no checkpoint of this format.
    """
    return decode_state(data, RunState, FORMAT)


def decode_state(data: bytes, kind: type[_T], version: int | None = None) -> _T:
    """Return the state that `encode_state` was given, its tensors on the CPU.

    Args:
        data: the bytes.
        kind: of the state.
        version: that its ``format`` must have; None: it has none.

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
        raise ValueError(f"not what a checkpoint holds: {error}") from None
    if tensors:
        raise ValueError("it holds tensors that belong nowhere")
    return state


def _taker(tensors: dict[str, Tensor]) -> Callable[[type, object], Tensor]:
    """Return what gives out every tensor once."""

    def take(kind: type, name: object) -> Tensor:
        if kind is not Tensor or not isinstance(name, str):
            raise ValueError("a tensor is missing")
        return tensors.pop(name).clone()

    return take


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Return the moments; step sizes and the like follow from the configuration."""
    state: OptimizerState = optimizer.state_dict()["state"]
    return state


def restore_optimizer(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Set the moments.

    Raises:
        ValueError: they are not those of this optimizer's parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, moments in state.items():
        if not 0 <= index < len(parameters):
            raise ValueError("moments of a parameter that there is not")
        if any(m.dim() and m.shape != parameters[index].shape for m in moments.values()):
            raise ValueError("moments of another shape than their parameter")
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
