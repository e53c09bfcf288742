"""The messages between server and sites; an answer holds bytes or the reason of a refusal.

Whoever carries them can read all of them. Nothing here is secret: shares are sealed for their
recipients and inputs are masked, as in `protocols`.
"""

from typing import TypeVar

import msgspec

from protocols.phases import ThreatModel

VERSION = 3
# A site in no session (its folder is new, for instance) ends its refusal with these words: the
# server greets it again.
NO_SESSION = "no session has begun"
# Every step of dreaming has an even number, so that an evaluation fits between two of them.
_SPACING = 2


def protocol_step(step: int) -> int:
    """Return the protocol's number of a step of dreaming.

    Evaluations have the odd numbers between. Thus steps of dreaming, which select the streams of
    rounding, are numbered as in a simulation, and give the same bits.
    """
    return _SPACING * step


def dreaming_step(number: int) -> int:
    """Return the step of dreaming that has a number in the protocol."""
    return number // _SPACING


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages to a site."""


class Who(_Message, frozen=True):
    """Asks for the site's number, and for a proof of it; the answer is a `Claim`.

    ``nonce``: fresh for every message, in all messages that have one; see `sites.presence`.
    """

    version: int
    session: bytes
    nonce: bytes


class Claim(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A site's answer to `Who`; without a signing key it has no proof."""

    version: int
    client: int
    proof: bytes = b""


class Hello(_Message, frozen=True):
    """Begins a run, or asks whether a site takes part in it. ``options`` is `Config.options`.

    ``spec``: channels, height and width of an image, and the number of classes; a site may have
    examples of only some classes. ``identities``: the clients' public keys in roster order, in the
    malicious model; a site compares them with its own roster file.
    """

    version: int
    session: bytes
    options: dict[str, int | float | str | bool | None]
    spec: tuple[int, int, int, int]
    identities: tuple[bytes, ...] = ()
    nonce: bytes = b""


class Begin(_Message, frozen=True):
    """Begins a session of sums without learning; ``identities`` as in `Hello`."""

    version: int
    session: bytes
    clients: int
    threshold: int
    threat_model: ThreatModel
    key_steps: int
    rejoin: bool = False
    identities: tuple[bytes, ...] = ()
    nonce: bytes = b""


class Joined(_Message, frozen=True):
    """A site's answer to `Begin`; ``received`` as in `Present`."""

    version: int
    client: int
    proof: bytes = b""
    received: int = 0


class Present(_Message, frozen=True):
    """A site's answer to `Hello`: its number and a proof of it, and the shape of its data.

    ``received``: how many items of the session's record it has processed.
    """

    version: int
    client: int
    spec: tuple[int, int, int, int]
    scaling: tuple[tuple[float, ...], tuple[float, ...]]
    proof: bytes = b""
    received: int = 0


class Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A key batch: its number, and the number of steps that its keys are good for."""

    number: int
    steps: int


class Advertise(_Message, frozen=True):
    """Round 0 of a key exchange: asks for an advertisement of keys."""

    batch: Batch


class Share(_Message, frozen=True):
    """Round 1 of a key exchange: brings the directory of keys, asks for sealed shares."""

    batch: Batch
    directory: bytes


class Deliver(_Message, frozen=True):
    """After round 1, malicious model: brings the bundles, asks which of them do not open."""

    batch: Batch
    delivery: bytes


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One step in the session's public record, which every later step is bound to (SPEC 6.11).

    ``step``: its number. ``request``: SHA-256 of what was asked. A step that came to a sum has also
    the protocol's context `on`, the key step, and the bitmap of its survivors; another has none.
    """

    step: int
    request: bytes
    on: bytes = b""
    key: int = 0
    survivors: bytes = b""


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Malicious model: signatures of at least t survivors on a step's survivor set."""

    signers: bytes
    signatures: tuple[bytes, ...]


class Listed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry of the record as it travels: its proof is checked, and not in the digest."""

    entry: Entry
    proof: Proof | None = None


class Ask(_Message, frozen=True):
    """Round 2: asks for a masked input. ``broadcast`` says what is computed.

    ``delivery``: the bundles of round 1, with the first step of a key batch; in the malicious model
    only for a site that has not answered `Deliver`. ``key_exchange``:
    round 0 of the next key exchange, whose answer comes back with the masked input. This saves a
    round trip (SPEC 6.2). ``missed``: the record's entries that the site does not have.
    """

    batch: Batch
    step: int
    request: bytes
    broadcast: bytes
    delivery: bytes = b""
    key_exchange: Advertise | None = None
    missed: tuple[Listed, ...] = ()


class Confirm(_Message, frozen=True):
    """Consistency round, malicious model: shows the survivor set and asks for a signature."""

    batch: Batch
    survivors: bytes


class Unmask(_Message, frozen=True):
    """Round 3: asks for shares. ``key_exchange``: round 1 of the next one."""

    batch: Batch
    data: bytes
    key_exchange: Share | None = None


class Labels(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The labels that one step summed: an encoded `SoftLabels`; the record says what was asked."""

    step: int
    sums: bytes
    proof: Proof | None = None


class Learn(_Message, frozen=True):
    """Ends a round: the summed labels of its dreams.

    Sites have the dreams from `Ask`. One that lacks some answers `NEEDS` and the digests of the
    requests, and gets these in ``requests``. ``missed`` as in `Ask`.
    """

    round: int
    labels: tuple[Labels, ...]
    missed: tuple[Listed, ...] = ()
    requests: tuple[bytes, ...] = ()


class End(_Message, frozen=True):
    """Ends the run: the site erases the keys and shares that are left (D15)."""


class Images(_Message, frozen=True):
    """The noisy sum of class means: little-endian uint32, and the number of clients in it.

    ``missed`` as in `Ask`.
    """

    totals: bytes
    count: int
    missed: tuple[Listed, ...] = ()


Lesson = Learn | Images
# Answers to what sites learn from.
DONE, NEEDS = b"done", b"needs "
Message = (
    Who
    | Hello
    | Begin
    | Advertise
    | Share
    | Deliver
    | Ask
    | Confirm
    | Unmask
    | Learn
    | Images
    | End
)


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a site sends back.

    ``report``: an encoded BundleReport, which the server reads before ``data``. ``refused``: the
    reason why there is no answer. ``key_exchange``: the answer to the message's, if it had one.
    """

    data: bytes = b""
    report: bytes = b""
    refused: str = ""
    key_exchange: bytes = b""


_DECODER = msgspec.msgpack.Decoder(Message)
_ANSWER = msgspec.msgpack.Decoder(Answer)
_PRESENT = msgspec.msgpack.Decoder(Present)
_JOINED = msgspec.msgpack.Decoder(Joined)
_CLAIM = msgspec.msgpack.Decoder(Claim)
_T = TypeVar("_T")


def decode_with(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    """Decode what another party sent.

    Raises:
        msgspec.DecodeError: the bytes are not a message of this type, whatever msgspec raises.
    """
    try:
        return decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        # msgspec does not catch these: text that is not UTF-8, and lists nested too deeply.
        raise msgspec.DecodeError(f"malformed: {error}") from None


def encode(message: _Message | Answer | Claim) -> bytes:
    """Return the bytes of a message or an answer."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    """Decode a message to a site.

    Raises:
        msgspec.DecodeError: the bytes are not one.
    """
    message: Message = decode_with(_DECODER, data)
    return message


def decode_answer(data: bytes) -> Answer:
    """Decode a site's answer.

    Raises:
        msgspec.DecodeError: the bytes are not one.
    """
    return decode_with(_ANSWER, data)


def decode_present(data: bytes) -> Present:
    """Decode the answer to `Hello`.

    Raises:
        msgspec.DecodeError: the bytes are not one.
    """
    return decode_with(_PRESENT, data)


def decode_joined(data: bytes) -> Joined:
    """Decode the answer to `Begin`.

    Raises:
        msgspec.DecodeError: the bytes are not one.
    """
    return decode_with(_JOINED, data)


def decode_claim(data: bytes) -> Claim:
    """Decode the answer to `Who`.

    Raises:
        msgspec.DecodeError: the bytes are not one.
    """
    return decode_with(_CLAIM, data)
