"""FedAvg's mean as integers: what a round asks, what a client adds to it, what comes out.

No secret is here, and no message: the vectors are masked by `protocols`.
"""

import hashlib
import math
from typing import Any

import msgspec
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from codream_secure.errors import RequestRefused, UserError
from codream_secure.flower.wire import VERSION
from protocols.client import Inputs
from protocols.params import MAX_INPUT, Section, Task
from protocols.quantization import Quantizer
from protocols.server import Finished

TRAIN, EVALUATE = "fedavg-train", "fedavg-evaluate"
UPDATE, METRICS, WEIGHT = "update", "metrics", "weight"
_METRIC_LEVELS = (1 << 20) - 1

# Scalars and lists of them, as in Flower's ConfigRecord, which checks them.
Config = dict[str, Any]


class SentArray(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One of Flower's arrays, serialized as Flower does it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


class MeanRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The broadcast of one step: everything that a client computes on (D4).

    ``evaluate``: asks for metrics alone. ``keys``: names of the records of arrays and of the
    configuration in Flower's message, and of the weight among the metrics. ``run_config``: of the
    run, which a client compares with the one it was given. ``metrics``: names, ``metric_clip``
    their range. ``weight_cap`` W: a client with w examples multiplies its update by min(w, W) / W;
    0: clients count equally. ``weigh``: the weights are a sum of their own, once in a session (D2).
    ``fixed``: names of arrays that stay as they are sent.
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
        """Of the update."""
        return Quantizer((1 << self.bits) - 1, self.clip)

    @property
    def metric_quantizer(self) -> Quantizer:
        """Of the metrics."""
        return Quantizer(_METRIC_LEVELS, self.metric_clip)

    @property
    def kind(self) -> str:
        """Name of this kind of sum."""
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

    def record(self) -> ArrayRecord:
        """Return the arrays as Flower has them."""
        return ArrayRecord(
            {
                sent.name: Array(
                    dtype=sent.dtype, shape=sent.shape, stype=sent.stype, data=sent.data
                )
                for sent in self.arrays
            }
        )


_DECODER = msgspec.msgpack.Decoder(MeanRequest)


def encode_request(request: MeanRequest) -> bytes:
    """Return the bytes of a request."""
    return msgspec.msgpack.encode(request)


def decode_request(data: bytes) -> MeanRequest:
    """Decode a request, and check what a client must not be asked.

    Raises:
        RequestRefused: it is none, of another version, or its settings are out of range.
    """
    try:
        request: MeanRequest = _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise RequestRefused(f"not a request: {error}") from None
    if request.version != VERSION:
        raise RequestRefused(f"a request of version {request.version}, not {VERSION}")
    if not 1 <= request.bits <= MAX_INPUT.bit_length() - 1:
        raise RequestRefused(f"{request.bits} bits a number")
    if not 0 <= request.weight_cap <= MAX_INPUT or (request.weigh and not request.weight_cap):
        raise RequestRefused("weights without a cap, or with one that is out of range")
    if request.keys[2] in request.metrics:
        # A client's weight does not change: two sums tell it (D2).
        raise RequestRefused(f"{request.keys[2]} is not a metric that is summed")
    return request


def sent_arrays(record: ArrayRecord) -> tuple[SentArray, ...]:
    """Return Flower's arrays as they are sent."""
    return tuple(
        SentArray(name, array.dtype, tuple(array.shape), array.stype, array.data)
        for name, array in record.items()
    )


def integers(record: ArrayRecord) -> set[str]:
    """Return the names of arrays that have no mean, such as BatchNorm's counters."""
    return {n for n, a in record.items() if not np.issubdtype(np.dtype(a.dtype), np.floating)}


def task_of(request: MeanRequest, broadcast: bytes, step: int) -> Task:
    """Return the step of the protocol.

    Raises:
        RequestRefused: the request is for another step; so none is answered twice (D1).
    """
    if request.step != step:
        raise RequestRefused(f"the broadcast is of step {request.step}, not {step}")
    return Task(
        step=step,
        kind=request.kind,
        sections=request.sections,
        broadcast_digest=hashlib.sha256(broadcast).digest(),
    )


def client_inputs(
    request: MeanRequest, arrays: ArrayRecord | None, metrics: MetricRecord, seed: bytes
) -> Inputs:
    """Return a client's part of the sum.

    Args:
        request: that is answered.
        arrays: what the client's training returned, named and shaped like the request's; None
            if it evaluates.
        metrics: what it returned beside them.
        seed: 32 secret bytes for the rounding, used once.

    Returns:
        by section uint32: the update (new less sent values), the metrics asked for, the weight.

    Raises:
        RequestRefused: an array, a metric or the weight is missing or is not what it should be.
        LocalProtocolError: a value is NaN or infinite.
    """
    inputs: dict[str, NDArray[np.uint32]] = {}
    weight = _weight(request, metrics) if request.weight_cap else 0
    if arrays is not None:
        update = _update(request, arrays)
        if request.weight_cap:
            update *= weight / request.weight_cap
        encode = request.quantizer.encode
        inputs[UPDATE] = encode(update, seed=seed, step=request.step, section=UPDATE)
    if request.metrics:
        values = np.array([_metric(metrics, name) for name in request.metrics], np.float64)
        encode = request.metric_quantizer.encode
        inputs[METRICS] = encode(values, seed=seed, step=request.step, section=METRICS)
    if request.weigh:
        inputs[WEIGHT] = np.array([weight], np.uint32)
    return inputs


def new_arrays(
    request: MeanRequest, finished: Finished, mean_weight: float | None = None
) -> ArrayRecord:
    """Return what was sent plus the mean update of the survivors.

    Args:
        request: that was answered.
        finished: the sum.
        mean_weight: with weights, the mean of min(w, W) over the clients of the step that told
            their sum, which stands for the survivors' of later steps.

    Returns:
        arrays of the same names, shapes and dtypes.

    Guarantees:
        With equal weights a number's error is zero-mean and its variance at most
        c**2 / ((2**q - 1)**2 * m) for m survivors (SPEC 7.2), as long as updates are within the
        clip c. With weights it is m * W**2 * c**2 / ((2**q - 1)**2 * (sum of weights)**2) (D20).

    Raises:
        UserError: the weights are all zero.
    """
    count = len(finished.survivors)
    total = request.quantizer.decode_sum(finished.totals[UPDATE], count)
    scale = 1.0
    if request.weight_cap:
        if not mean_weight:
            raise UserError("the sum of weights is zero: no client has an example")
        scale = mean_weight / request.weight_cap
    mean = total / (count * scale)
    found, start = {}, 0
    for name, array in request.record().items():
        old = array.numpy()
        if name not in request.fixed:
            part = mean[start : start + old.size].reshape(old.shape)
            start += old.size
            found[name] = Array(np.asarray(old + part, old.dtype))
        else:
            found[name] = array
    return ArrayRecord(found)


def mean_metrics(request: MeanRequest, finished: Finished) -> dict[str, float]:
    """Return the mean of every metric over the survivors, each counted once."""
    if not request.metrics:
        return {}
    count = len(finished.survivors)
    total = request.metric_quantizer.decode_sum(finished.totals[METRICS], count)
    return dict(zip(request.metrics, (total / count).tolist(), strict=True))


def _length(request: MeanRequest) -> int:
    return sum(math.prod(sent.shape) for sent in request.arrays if sent.name not in request.fixed)


def _update(request: MeanRequest, arrays: ArrayRecord) -> NDArray[np.float64]:
    parts = []
    for name, array in request.record().items():
        if name not in arrays:
            raise RequestRefused("training did not return every array that was sent")
        if name in request.fixed:
            continue
        old, new = array.numpy(), arrays[name].numpy()
        if old.shape != new.shape:
            raise RequestRefused("training returned an array of another shape")
        parts.append((new.astype(np.float64) - old).ravel())
    return np.concatenate(parts)


def _weight(request: MeanRequest, metrics: MetricRecord) -> int:
    name = request.keys[2]
    return min(max(0, int(_metric(metrics, name))), request.weight_cap)


def _metric(metrics: MetricRecord, name: str) -> float:
    value = metrics.get(name)
    if not isinstance(value, int | float):
        raise RequestRefused(f"the client has no metric {name!r} that is one number")
    return float(value)
