"""How a client decodes a request: canonical, of this version, and of a possible shape."""

import math
from typing import TypeVar

import msgspec

from codream_secure.aggregation.requests import (
    VERSION,
    Asked,
    AskedOfClient,
    DreamRequest,
    GradientRequest,
    LabelRequest,
    ModelRequest,
    Request,
    encode,
)
from codream_secure.aggregation.sections import sections
from codream_secure.errors import RequestRefused
from protocols.errors import ConfigError

_Kind = TypeVar("_Kind", bound=Asked)

_REQUEST_DECODER = msgspec.msgpack.Decoder(AskedOfClient)
_MODEL_DECODER = msgspec.msgpack.Decoder(ModelRequest | GradientRequest)


def decode_request(data: bytes) -> AskedOfClient:
    """Decode a request as a client that dreams does.

    Raises:
        RequestRefused: the bytes are no canonical request of this version, or one whose dreams
            or answer have an impossible shape.
    """
    request: AskedOfClient = _decoded(_REQUEST_DECODER, data)
    if isinstance(request, DreamRequest | LabelRequest):
        _check_dreams(request)
    elif isinstance(request, ModelRequest):
        _check_tensors(request)
    _check_sections(request)
    return request


def decode_model_request(data: bytes) -> ModelRequest | GradientRequest:
    """Decode a request for a model's update or gradient as a client does.

    Raises:
        RequestRefused: the bytes are no canonical request of this version, or name no tensors
            that can be sent.
    """
    request: ModelRequest | GradientRequest = _decoded(_MODEL_DECODER, data)
    if isinstance(request, ModelRequest):
        _check_tensors(request)
    _check_sections(request)
    return request


def _decoded(decoder: "msgspec.msgpack.Decoder[_Kind]", data: bytes) -> _Kind:
    try:
        request = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestRefused(f"not a request: {error}") from None
    # Two encodings of one request would have two digests, and could be answered twice (D1).
    if request.version != VERSION or encode(request) != data:
        raise RequestRefused("not a canonical request of this version")
    return request


def _check_sections(request: Asked) -> None:
    try:
        sections(request)
    except ConfigError as error:
        raise RequestRefused(f"no masked input can answer this: {error}") from None


def _check_dreams(request: Request) -> None:
    count = request.shape[0]
    if min(request.shape) < 1 or len(request.dreams) != math.prod(request.shape):
        raise RequestRefused("the dreams do not fill the announced shape")
    if not 1 <= request.batches <= count or count % request.batches:
        raise RequestRefused(f"{count} dreams are not {request.batches} equal batches")
    if isinstance(request, DreamRequest):
        _check_besides(request)


def _check_besides(request: DreamRequest) -> None:
    """Check what a dream request may carry besides its dreams."""
    student, labels = request.student, request.labels
    if student and len(student.logits) != 4 * request.shape[0] * student.classes:
        raise RequestRefused("the student's logits do not fit the dreams")
    # Under client-level DP labels have noise and gradients have none: these must not be released.
    if labels and labels.noisy is not None:
        raise RequestRefused("labels with noise do not travel with a gradient")


def _check_tensors(request: ModelRequest) -> None:
    if len(request.sizes) != len(request.scales) or min(request.sizes, default=0) < 1:
        raise RequestRefused("sizes and scales are not of the same tensors")
    if not all(0 < scale < math.inf for scale in request.scales):
        raise RequestRefused("a scale is not positive and finite")
