"""What the server broadcasts to the clients (public), in the order of a synthesis.

A client's answer to a request is never here: it goes through `protocols` as a masked input.
The digest of a request's *bytes* enters the derivation of every mask (SPEC 3.2, D4), so a
request carries everything that the client's computation depends on.
"""

import hashlib
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.errors import RequestRefused
from protocols.params import Section

VERSION = 1
LabelKind = Literal["logits", "probabilities"]


class DreamRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="dreams"
):
    """Asks for the gradient of the client's loss at these dreams.

    ``shape`` is (B, C, H, W); ``dreams`` is B*C*H*W uint8 pixels; ``clip`` is in units of the
    gradient of the B-fold loss with respect to a scaled pixel.
    """

    version: int
    round: int
    batch: int
    dream_step: int
    shape: tuple[int, int, int, int]
    dreams: bytes
    bits: int
    clip: float
    entropy_weight: float
    bn_weight: float
    balance_weight: float


class LabelRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="labels"
):
    """Asks for soft labels of the finished dreams.

    ``clip`` is the public range of a logit; probabilities are sent as p - 1/2 with clip 1/2.
    """

    version: int
    round: int
    batch: int
    shape: tuple[int, int, int, int]
    dreams: bytes
    bits: int
    clip: float
    kind: LabelKind
    temperature: float
    classes: int


class SoftLabels(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="soft_labels"
):
    """The summed labels of ``count`` clients: field elements, packed as in SPEC 5.3."""

    version: int
    round: int
    batch: int
    count: int
    totals: bytes


Request = DreamRequest | LabelRequest
_REQUEST_DECODER = msgspec.msgpack.Decoder(Request)


def encode(message: Request | SoftLabels) -> bytes:
    """Return the one canonical encoding of a broadcast."""
    return msgspec.msgpack.encode(message)


def decode_request(data: bytes) -> Request:
    """Decode a request as a client does.

    Raises:
        RequestRefused: the bytes are no canonical request of this version.
    """
    try:
        request: Request = _REQUEST_DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise RequestRefused(f"not a request: {error}") from None
    if request.version != VERSION or encode(request) != data:
        raise RequestRefused("not a canonical request of this version")
    if len(request.dreams) != int(np.prod(request.shape)):
        raise RequestRefused("the dreams do not fill the announced shape")
    return request


def digest(data: bytes) -> bytes:
    """Return the 32-byte digest of a broadcast that masks are bound to (D4)."""
    return hashlib.sha256(b"codream-secure broadcast\x00" + data).digest()


def pixels(request: Request) -> NDArray[np.uint8]:
    """Return the request's dreams, uint8, shape (B, C, H, W)."""
    return np.frombuffer(request.dreams, dtype=np.uint8).reshape(request.shape)


def sections(request: Request) -> tuple[Section, ...]:
    """Return the sections of the masked input that answers ``request``; both sides derive them."""
    if isinstance(request, DreamRequest):
        return (
            Section(
                name="gradient",
                length=len(request.dreams),
                bits=request.bits,
                clip=request.clip,
            ),
        )
    return (
        Section(
            name="labels",
            length=request.shape[0] * request.classes,
            bits=request.bits,
            clip=request.clip,
        ),
    )
