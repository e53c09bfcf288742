"""FedAvg's mean as integers: from a client's update to its input, from the sum to the mean.

`protocols` masks the inputs; nothing here knows keys or messages.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from codream_secure.errors import RequestRefused, UserError
from codream_secure.flower.mean_request import METRICS, UPDATE, WEIGHT, MeanRequest, SentArray
from codream_secure.sites.policy import SitePolicy
from protocols.client.step import Inputs
from protocols.server.step import Finished


def array_record(request: MeanRequest) -> ArrayRecord:
    """Return the arrays of a request in Flower's form."""
    return ArrayRecord(
        {
            sent.name: Array(dtype=sent.dtype, shape=sent.shape, stype=sent.stype, data=sent.data)
            for sent in request.arrays
        }
    )


def sent_arrays(record: ArrayRecord) -> tuple[SentArray, ...]:
    """Return Flower's arrays in the form of a request."""
    return tuple(
        SentArray(name, array.dtype, tuple(array.shape), array.stype, array.data)
        for name, array in record.items()
    )


def check_numbers(request: MeanRequest, policy: SitePolicy) -> None:
    """Refuse a request that holds a number beyond the client's policy.

    A large common weight, for instance, makes one client's feature the largest term of the sum.

    Raises:
        RequestRefused: which number is beyond which bound.
    """
    policy.check("weight_cap", request.weight_cap, "max_weight_cap")
    for name, value in request.config.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float):
                policy.check(f"configuration {name!r}", abs(number), "max_config_value")
    for name, array in array_record(request).items():
        values = array.numpy()
        if np.issubdtype(values.dtype, np.floating):
            largest = float(np.abs(values).max(initial=0.0))  # NaN if one is
            policy.check(f"array {name!r}", largest, "max_model_value")


def integers(record: ArrayRecord) -> set[str]:
    """Return the names of integer arrays, such as BatchNorm's counters: they have no mean."""
    return {n for n, a in record.items() if not np.issubdtype(np.dtype(a.dtype), np.floating)}


def client_inputs(
    request: MeanRequest, arrays: ArrayRecord | None, metrics: MetricRecord, seed: bytes
) -> Inputs:
    """Return a client's input to the sum.

    Args:
        request: the request.
        arrays: what training returned, with the request's names and shapes; None for evaluation.
        metrics: the metrics that came with them.
        seed: 32 secret bytes for the rounding, used once.

    Returns:
        For each section uint32 numbers: the update (new minus sent values), the metrics that the
        request names, the weight.

    Raises:
        RequestRefused: an array, a metric or the weight is missing, or has a wrong type or shape.
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
    """Return the sent arrays plus the mean update of the survivors.

    Args:
        request: the request.
        finished: the sum.
        mean_weight: with weights, the mean of min(w, W) over the clients of the step that summed
            the weights. It replaces the survivors' own mean in later steps.

    Returns:
        Arrays with the same names, shapes and dtypes.

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
    for name, array in array_record(request).items():
        old = array.numpy()
        if name not in request.fixed:
            part = mean[start : start + old.size].reshape(old.shape)
            start += old.size
            found[name] = Array(np.asarray(old + part, old.dtype))
        else:
            found[name] = array
    return ArrayRecord(found)


def mean_metrics(request: MeanRequest, finished: Finished) -> dict[str, float]:
    """Return the unweighted mean of every metric over the survivors."""
    if not request.metrics:
        return {}
    count = len(finished.survivors)
    total = request.metric_quantizer.decode_sum(finished.totals[METRICS], count)
    return dict(zip(request.metrics, (total / count).tolist(), strict=True))


def _update(request: MeanRequest, arrays: ArrayRecord) -> NDArray[np.float64]:
    parts = []
    for name, array in array_record(request).items():
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
