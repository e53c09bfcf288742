"""The broadcast of a round of FedAvg under masks, and the vectors that clients return."""

import hashlib
import math
from typing import Any

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.sites.wire import VERSION, decode_with
from protocols.params import MAX_INPUT, Section, Task
from protocols.quantization import Quantizer

TRAIN, EVALUATE = "fedavg-train", "fedavg-evaluate"
UPDATE, METRICS, WEIGHT = "update", "metrics", "weight"
# Flower's usual name of a client's number of examples. It is a weight even if the server uses
# another name for weights.
_EXAMPLES = "num-examples"
_METRIC_LEVELS = (1 << 20) - 1

# Scalars and lists of scalars. Flower's ConfigRecord checks them.
Config = dict[str, Any]


class SentArray(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One of Flower's arrays, in Flower's serialization."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


class MeanRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The broadcast of one step: all that a client's computation depends on (D4).

    ``evaluate``: asks only for metrics. ``keys``: names of the arrays' record and of the
    configuration's record in Flower's message, and of the weight among the metrics. ``run_config``:
    the run's; a client compares it with its own. ``metrics``: names; ``metric_clip``: their range.
    ``weight_cap`` W: a client with w examples multiplies its update by min(w, W) / W; 0: clients
    count equally. ``weigh``: asks also for the sum of weights, once in a session (D2). ``fixed``:
    names of arrays that do not change.
    """

    version: int
    step: int
    evaluate: bool
    keys: tuple[str, str, str]
    arrays: tuple[SentArray, ...]
    config: Config
    run_config: Config
    bits: int
    clip: float
    metrics: tuple[str, ...] = ()
    metric_clip: float = 1.0
    weight_cap: int = 0
    weigh: bool = False
    fixed: tuple[str, ...] = ()

    @property
    def quantizer(self) -> Quantizer:
        """Quantizes the update."""
        return Quantizer((1 << self.bits) - 1, self.clip)

    @property
    def metric_quantizer(self) -> Quantizer:
        """Quantizes the metrics."""
        return Quantizer(_METRIC_LEVELS, self.metric_clip)

    @property
    def kind(self) -> str:
        """Name of this kind of sum, for the client's policy."""
        return EVALUATE if self.evaluate else TRAIN

    @property
    def sections(self) -> tuple[Section, ...]:
        """The vectors of a client's input."""
        found = []
        if not self.evaluate:
            levels = self.quantizer.levels
            found.append(Section(name=UPDATE, length=_length(self), maximum=levels, clip=self.clip))
        if self.metrics:
            found.append(
                Section(
                    name=METRICS,
                    length=len(self.metrics),
                    maximum=_METRIC_LEVELS,
                    clip=self.metric_clip,
                )
            )
        if self.weigh:
            found.append(Section(name=WEIGHT, length=1, maximum=self.weight_cap, clip=1.0))
        return tuple(found)


_DECODER = msgspec.msgpack.Decoder(MeanRequest)


def encode_request(request: MeanRequest) -> bytes:
    """Return the bytes of a request."""
    return msgspec.msgpack.encode(request)


def decode_request(data: bytes) -> MeanRequest:
    """Decode a request, and refuse what a client must not answer.

    Raises:
        RequestRefused: it is no request, has another version, or has settings out of range.
    """
    try:
        request = decode_with(_DECODER, data)
    except msgspec.DecodeError as error:
        raise RequestRefused(f"not a request: {error}") from None
    if request.version != VERSION:
        raise RequestRefused(f"a request of version {request.version}, not {VERSION}")
    if not 1 <= request.bits <= MAX_INPUT.bit_length() - 1:
        raise RequestRefused(f"{request.bits} bits a number")
    if not 0 <= request.weight_cap <= MAX_INPUT or (request.weigh and not request.weight_cap):
        raise RequestRefused("weights without a cap, or with one that is out of range")
    for weight in (_EXAMPLES, request.keys[2]):
        if weight in request.metrics:
            # A client's weight is the same in every step. Sums over different survivors would
            # differ by one client's weight (D2).
            raise RequestRefused(f"{weight} is not a metric that is summed")
    return request


def task_of(request: MeanRequest, broadcast: bytes, step: int) -> Task:
    """Return the protocol's task for a request.

    Raises:
        RequestRefused: the request is for another step. This stops replays under a new number (D1).
    """
    if request.step != step:
        raise RequestRefused(f"the broadcast is of step {request.step}, not {step}")
    return Task(
        step=step,
        kind=request.kind,
        sections=request.sections,
        broadcast_digest=hashlib.sha256(broadcast).digest(),
    )


def _length(request: MeanRequest) -> int:
    return sum(math.prod(sent.shape) for sent in request.arrays if sent.name not in request.fixed)
