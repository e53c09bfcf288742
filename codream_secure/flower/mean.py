"""FedAvg's mean as integers: from a client's update to its input, from the sum to the mean.

`protocols` masks the inputs; nothing here knows keys or messages.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from codream_secure.errors import UserError
from codream_secure.flower.mean_request import METRICS, UPDATE, WEIGHT, MeanRequest, SentArray
from codream_secure.sites.policy import SitePolicy
from protocols.client.step import Inputs
from protocols.quantization import repairs
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
    request: MeanRequest, arrays: ArrayRecord, metrics: MetricRecord, seed: bytes
) -> tuple[Inputs, int, list[str]]:
    """Return a client's input to the sum, whatever its function returned.

    A refusal would tell the server something of private data. So what is missing or has another
    type or shape is zero, and a number that is not finite counts as 0 or as the clip (SPEC 7.1).

    Args:
        request: the request.
        arrays: what training returned, with the request's names and shapes; ignored for evaluation.
        metrics: the metrics that came with them.
        seed: 32 secret bytes for the rounding, used once.

    Returns:
        For each section uint32 numbers: the update (new minus sent values), the metrics that the
        request names, the weight. How many numbers were not finite. What was missing, in words.
    """
    missing: list[str] = []
    inputs: dict[str, NDArray[np.uint32]] = {}
    repaired = 0
    weight = _weight(request, metrics, missing) if request.weight_cap else 0
    if not request.evaluate:
        update = _update(request, arrays, missing)
        repaired += repairs(update)
        if request.weight_cap:
            update *= weight / request.weight_cap
        encode = request.quantizer.encode
        inputs[UPDATE] = encode(update, seed=seed, step=request.step, section=UPDATE)
    if request.metrics:
        values = np.array([_metric(metrics, name, missing) for name in request.metrics], np.float64)
        repaired += repairs(values)
        encode = request.metric_quantizer.encode
        inputs[METRICS] = encode(values, seed=seed, step=request.step, section=METRICS)
    if request.weigh:
        inputs[WEIGHT] = np.array([weight], np.uint32)
    return inputs, repaired, missing


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


def _update(request: MeanRequest, arrays: ArrayRecord, missing: list[str]) -> NDArray[np.float64]:
    """Return new minus sent values of the arrays that have a mean; zeros if one is amiss."""
    try:
        parts = [
            _difference(array.numpy(), arrays[name].numpy())
            for name, array in array_record(request).items()
            if name not in request.fixed
        ]
    except Exception as error:  # noqa: BLE001 - an app may return anything
        missing.append(f"no usable arrays: {type(error).__name__}: {error}")
        return np.zeros(request.sections[0].length)
    return np.concatenate(parts) if parts else np.zeros(0)


def _difference(old: NDArray[np.generic], new: NDArray[np.generic]) -> NDArray[np.float64]:
    if old.shape != new.shape:
        raise ValueError(f"an array of shape {new.shape}, not {old.shape}")
    with np.errstate(invalid="ignore", over="ignore"):  # counted and repaired
        return (new.astype(np.float64) - old.astype(np.float64)).ravel()


def _weight(request: MeanRequest, metrics: MetricRecord, missing: list[str]) -> int:
    examples = _metric(metrics, request.keys[2], missing)
    return int(min(max(0.0, np.nan_to_num(examples)), request.weight_cap))


def _metric(metrics: MetricRecord, name: str, missing: list[str]) -> float:
    value = metrics.get(name)
    try:
        if isinstance(value, int | float):
            return float(value)
    except OverflowError:
        pass
    missing.append(f"no metric {name!r} that is one number")
    return 0.0
