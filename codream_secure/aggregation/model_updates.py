"""Updates of a common model: the request for their sum, their decoded mean, and the way back."""

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.aggregation.aggregator import FieldSum
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.requests import (
    VERSION,
    ModelRequest,
    ModelState,
    digest,
    encode,
)
from codream_secure.errors import RequestRefused, StepAborted
from codream_secure.models.tensors import Tensors, float_bytes, to_codes
from codream_secure.runtime.seeds import derive_bytes
from protocols.quantization import CLIP_MIN, Quantizer, next_clip

FULL = 32
# The clip is this many standard deviations. Updates have longer tails than gradients of dreams,
# and usually enough bits for a wider range.
_DEVIATIONS = 6.0


def first_scales(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return first clips for the updates of tensors: four times each's root mean square, or 1.

    They are computed from the public first model; later clips follow from the means of updates.
    """
    spreads = {name: float(value.square().mean().sqrt()) for name, value in state.items()}
    return {name: max(4 * spread if spread else 1.0, CLIP_MIN) for name, spread in spreads.items()}


def model_digest(state: Mapping[str, Tensor]) -> bytes:
    """Return the digest of a model at full precision."""
    tensors = tuple(float_bytes(value) for value in state.values())
    return digest(encode(ModelState(VERSION, 0, FULL, tensors)))


def scaled_update(update: Mapping[str, Tensor], request: ModelRequest) -> NDArray[np.float64]:
    """Return an update as the request's quantizer takes it, in [-1, 1] unless clipped, flat."""
    pairs = zip(update.values(), request.scales, strict=True)
    parts = [(value / scale).flatten().cpu().numpy() for value, scale in pairs]
    return np.concatenate(parts).astype(np.float64)


def decoded_update(
    answer: FieldSum, request: ModelRequest, state: Mapping[str, Tensor]
) -> tuple[Tensors, dict[str, float]]:
    """Return the clients' mean update, and the scales that the next request should have.

    Args:
        answer: the sum of the clients' updates.
        request: that they answered.
        state: the tensors that clients start from.

    Raises:
        StepAborted: the clients' weights add up to nothing.
    """
    flat, share = answer.mean("update"), 1.0
    if request.weight_cap:
        weight = int(answer.totals["weight"][0])
        if not weight:
            raise StepAborted("the clients' weights add up to nothing")
        share = answer.count * request.weight_cap / weight
    mean, scales, begin = {}, {}, 0
    for (name, value), scale in zip(state.items(), request.scales, strict=True):
        part = flat[begin : begin + value.numel()]
        begin += value.numel()
        quantizer = Quantizer((1 << request.bits) - 1, scale)
        scales[name] = next_clip(quantizer, part * scale, answer.count, deviations=_DEVIATIONS)
        decoded = torch.from_numpy((part * (scale * share)).astype(np.float32))
        mean[name] = decoded.reshape(value.shape).to(value.device)
    return mean, scales


def packed(number: int, bits: int, seed: int, state: Mapping[str, Tensor]) -> ModelState:
    """Return tensors as they travel to clients.

    Args:
        number: of the round, or of the sum.
        bits: 32 for float32, or 8.
        seed: of the random rounding to 8 bits.
        state: the tensors.
    """
    if bits == FULL:
        return ModelState(VERSION, number, bits, tuple(map(float_bytes, state.values())))
    tensors, ranges = [], []
    for index, value in enumerate(state.values()):
        codes, low, step = to_codes(value, derive_bytes(seed, "down", number, index))
        tensors.append(codes.tobytes())
        ranges.append((low, step))
    return ModelState(VERSION, number, bits, tuple(tensors), tuple(ranges))


def sent_to(clients: Iterable[int], tensors: ModelState, ledger: ByteLedger) -> bytes:
    """Return the message with which tensors go to clients; the ledger counts it for each."""
    message, content = encode(tensors), sum(map(len, tensors.tensors))
    for client in clients:
        ledger.record("broadcast", "down", len(message), client=client, payload=content)
    return message


def unpacked(message: ModelState, like: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of a message, in the names, shapes and device of ``like``.

    Raises:
        RequestRefused: the message does not hold such tensors.
    """
    full = message.bits == FULL
    ranges = ((0.0, 1.0),) * len(like) if full else message.ranges
    if not len(message.tensors) == len(ranges) == len(like):
        raise RequestRefused("another number of tensors than the model has")
    found = {}
    for (name, value), data, (low, step) in zip(like.items(), message.tensors, ranges, strict=True):
        if len(data) != value.numel() * (4 if full else 1):
            raise RequestRefused("a tensor of another size than the model's")
        codes = np.frombuffer(data, "<f4" if full else np.uint8)
        numbers = codes.astype(np.float32) if full else (low + step * codes).astype(np.float32)
        found[name] = torch.from_numpy(numbers).reshape(value.shape).to(value.device)
    return found


def received(data: bytes, like: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors that a server sent to a client, in the form of ``like``.

    Raises:
        RequestRefused: the message is malformed, or does not hold such tensors, or not finite ones.
    """
    found = unpacked(decode_model_state(data), like)
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise RequestRefused("a number of the common model is not finite")
    return found


def decode_model_state(data: bytes) -> ModelState:
    """Decode a message as a client does that is sent a model.

    Raises:
        RequestRefused: it is no canonical message of this version.
    """
    try:
        message = _STATE_DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestRefused(f"not a model: {error}") from None
    if message.version != VERSION or encode(message) != data or message.bits not in (8, FULL):
        raise RequestRefused("not a canonical model of this version")
    return message


_STATE_DECODER = msgspec.msgpack.Decoder(ModelState)
