"""What travels in a Flower message: one of these, encoded; an answer is bytes or a refusal.

All of it passes through the SuperLink. Nothing here is secret: shares are sealed for their
recipients and inputs are masked, as in `protocols`.
"""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from protocols.phases import ThreatModel

VERSION = 2
# Where a Flower message holds its bytes, and the action that it asks for.
RECORD, BODY, ACTION = "codream-secure", "body", "secure"
# End of the refusal of a site that is in no session, with a new folder for instance.
NO_SESSION = "no session has begun"


_SPACING = 2


def protocol_step(step: int) -> int:
    """Return the number that step ``step`` of dreaming has in the protocol.

    What is asked between two of them has the odd number between, so that steps of dreaming, which
    select rounding streams, are numbered as in a simulation.
    """
    return _SPACING * step


def dreaming_step(number: int) -> int:
    """Return the step of dreaming of a step of the protocol."""
    return number // _SPACING


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages to a site."""


class Who(_Message, frozen=True):
    """Asks for the site's number; the answer is its decimal digits."""


class Hello(_Message, frozen=True):
    """Begins a session, or finds out who is there: options of the run, as `Config.options`.

    ``spec``: channels, height and width of an image, and the number of classes; a site may have
    seen only some of these. ``identities``: the clients' public keys in roster order, in the
    malicious model; a site compares them with its own roster file.
    """

    version: int
    session: bytes
    options: dict[str, int | float | str | bool | None]
    spec: tuple[int, int, int, int]
    identities: tuple[bytes, ...] = ()


class Begin(_Message, frozen=True):
    """Begins a session of sums alone: who takes part, and on what terms.

    ``identities``: as in `Hello`.
    """

    version: int
    session: bytes
    clients: int
    threshold: int
    threat_model: ThreatModel
    key_steps: int
    rejoin: bool = False
    identities: tuple[bytes, ...] = ()


class Joined(_Message, frozen=True):
    """A site's answer to `Begin`."""

    version: int
    client: int
    identity: bytes = b""


class Present(_Message, frozen=True):
    """A site's answer to `Hello`: who it is, and the shape of its data.

    ``heard``: how many `Images` and `Learn` it has taken in this session.
    """

    version: int
    client: int
    spec: tuple[int, int, int, int]
    scaling: tuple[tuple[float, ...], tuple[float, ...]]
    identity: bytes = b""
    heard: int = 0


class Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which keys: the number of the batch and for how many steps."""

    number: int
    steps: int


class Advertise(_Message, frozen=True):
    """Round 0 of a key exchange."""

    batch: Batch


class Share(_Message, frozen=True):
    """Round 1: the directory of keys."""

    batch: Batch
    directory: bytes


class Ask(_Message, frozen=True):
    """Masked input collection: what is asked, with the step's request.

    ``delivery``: bundles of round 1, with the first step of a batch. ``beside``: round 0 of the
    next batch's exchange, whose answer comes back with the masked input (SPEC 6.2).
    """

    batch: Batch
    step: int
    request: bytes
    broadcast: bytes
    delivery: bytes = b""
    beside: Advertise | None = None


class Confirm(_Message, frozen=True):
    """Consistency round: the survivor set."""

    batch: Batch
    survivors: bytes


class Unmask(_Message, frozen=True):
    """Unmasking. ``beside``: round 1 of the next batch's exchange."""

    batch: Batch
    data: bytes
    beside: Share | None = None


class Evidence(_Message, frozen=True):
    """After a step, malicious model: asks who dealt the shares that did not fit (SPEC 6.10)."""

    batch: Batch
    request: bytes


class Learn(_Message, frozen=True):
    """The end of a round: the summed labels of its dreams, which sites keep from `Ask`."""

    round: int
    labels: tuple[bytes, ...]


class End(_Message, frozen=True):
    """The run is over: keys and shares that are left are of no use any more (D15)."""


class Images(_Message, frozen=True):
    """The noisy sum of class statistics: uint32, little-endian, and how many clients are in it."""

    totals: bytes
    count: int


Message = (
    Who
    | Hello
    | Begin
    | Advertise
    | Share
    | Ask
    | Confirm
    | Unmask
    | Evidence
    | Learn
    | Images
    | End
)


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a site sends back.

    ``report``: an encoded BundleReport that goes before the answer. ``refused``: why there is none.
    ``beside``: the answer to what was asked beside; empty if there is none.
    """

    data: bytes = b""
    report: bytes = b""
    refused: str = ""
    beside: bytes = b""


_DECODER = msgspec.msgpack.Decoder(Message)
_ANSWER = msgspec.msgpack.Decoder(Answer)
_PRESENT = msgspec.msgpack.Decoder(Present)
_JOINED = msgspec.msgpack.Decoder(Joined)
_T = TypeVar("_T")


def body_of(content: Mapping[str, object]) -> bytes | None:
    """Return the bytes in the content of a Flower message; None if it holds none."""
    record = content.get(RECORD)
    body = record.get(BODY) if isinstance(record, Mapping) else None
    return body if isinstance(body, bytes) else None


def decode_with(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    """Decode what another party sent.

    Raises:
        msgspec.DecodeError: the bytes are none of these; whatever msgspec itself raises.
    """
    try:
        return decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        # msgspec lets these through: text that is no UTF-8, or lists too deep in each other.
        raise msgspec.DecodeError(f"malformed: {error}") from None


def encode(message: _Message | Answer) -> bytes:
    """Return the bytes of a message or an answer."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    """Decode a message to a site.

    Raises:
        msgspec.DecodeError: the bytes are none.
    """
    message: Message = decode_with(_DECODER, data)
    return message


def decode_answer(data: bytes) -> Answer:
    """Decode a site's answer.

    Raises:
        msgspec.DecodeError: the bytes are none.
    """
    return decode_with(_ANSWER, data)


def decode_present(data: bytes) -> Present:
    """Decode the answer to `Hello`.

    Raises:
        msgspec.DecodeError: the bytes are none.
    """
    return decode_with(_PRESENT, data)


def decode_joined(data: bytes) -> Joined:
    """Decode the answer to `Begin`.

    Raises:
        msgspec.DecodeError: the bytes are none.
    """
    return decode_with(_JOINED, data)
