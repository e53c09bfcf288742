"""One frozen type per message, in the order of the rounds, each with one encoding (SPEC 5).

"Up" goes from a client to the server, "down" from the server to a client. In the malicious model
every upload is inside a `Signed`. The encoding is a MessagePack array [tag, field, ...]. The high
four bits of the tag are the format version, 1; in messages that only the ring has they are 3, only
the chosen graph 4.
Messages hold no sender and no session: the contexts bind those into every key (SPEC 1.3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import compress
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from protocols.errors import DecodeError
from protocols.params import DIGEST_SIZE, MAX_CLIENTS, MAX_STEPS, NONCE_SIZE, BatchParams, Task
from protocols.primitives.keys import KEY_SIZE, SIGNATURE_SIZE, TAG_SIZE, is_canonical
from protocols.primitives.packing import packed_size
from protocols.primitives.shamir import SIZE as SHARE_SIZE

Key = Annotated[bytes, msgspec.Meta(min_length=KEY_SIZE, max_length=KEY_SIZE)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_SIZE, max_length=DIGEST_SIZE)]
NonceBytes = Annotated[bytes, msgspec.Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]
Share = Annotated[bytes, msgspec.Meta(min_length=SHARE_SIZE, max_length=SHARE_SIZE)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_SIZE, max_length=SIGNATURE_SIZE)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_STEPS)]
Place = Annotated[int, msgspec.Meta(ge=0, lt=MAX_CLIENTS)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Advertisement(Message, frozen=True, tag=0x10):
    """Round 0, up: the key for bundles, a mask key per step, one commitment to all seeds."""

    channel_key: Key
    mask_keys: tuple[Key, ...]
    commitment: Digest


class KeyDirectory(Message, frozen=True, tag=0x11):
    """Round 0, down: who advertised (U1), and the advertisements as sent, in roster order."""

    members: bytes
    advertisements: tuple[bytes, ...]


class RingAdvertisement(Advertisement, frozen=True, tag=0x30):
    """Round 0, up, ring: an Advertisement and the commitment of a nonce."""

    nonce_commitment: Digest


class NonceCommitments(Message, frozen=True, tag=0x31):
    """Round 0, down, ring: who advertised (C), and the nonce commitments, in roster order."""

    members: bytes
    commitments: tuple[Digest, ...]


class Nonce(Message, frozen=True, tag=0x32):
    """Draw, up: the nonce that the sender committed to."""

    nonce: NonceBytes


class RingDirectory(Message, frozen=True, tag=0x33):
    """Draw, down: who is on the ring (U1), their nonces, the neighbours' advertisements."""

    members: bytes
    nonces: tuple[NonceBytes, ...]
    advertisements: tuple[bytes, ...]


class ChosenAdvertisement(Advertisement, frozen=True, tag=0x40):
    """Round 0, up, chosen: an Advertisement and the bitmap of the clients that the sender chose."""

    chosen: bytes


class ChosenDirectory(Message, frozen=True, tag=0x41):
    """Round 0, down, chosen: who advertised (U1), the neighbours, and their advertisements."""

    members: bytes
    neighbours: bytes
    advertisements: tuple[bytes, ...]


class ShareBundles(Message, frozen=True, tag=0x12):
    """Round 1, up: a commitment per seed, and a bundle of sealed shares per holder."""

    commitments: tuple[Digest, ...]
    bundles: tuple[bytes, ...]


class BundleDelivery(Message, frozen=True, tag=0x13):
    """Round 1, down: who shared (U2) and their bundles for this client, in roster order."""

    sharers: bytes
    bundles: tuple[bytes, ...]


class BundleReport(Message, frozen=True, tag=0x18):
    """After round 1, up: whose bundles did not open. A client sends it only if there are any."""

    unopened: bytes


class StepRequest(Message, frozen=True, tag=0x17):
    """Round 2, down, beside the broadcast: the key step j, the active set A, lost pairs in it.

    `lost` lists pairs of roster indices (SPEC 5.5).
    """

    key: Index
    active: bytes
    lost: tuple[tuple[Place, Place], ...] = ()


class MaskedInput(Message, frozen=True, tag=0x14):
    """Round 2, up: one packed masked vector per section, in section order."""

    key: Index
    sections: tuple[bytes, ...]


class SurvivorSet(Message, frozen=True, tag=0x15):
    """Round 2, down: the clients whose masked inputs are in the sum (U3)."""

    survivors: bytes


class UnmaskShares(Message, frozen=True, tag=0x16):
    """Round 3, up: exactly one share of each active client whose shares the sender holds.

    `self_shares` are of U3, `key_shares` of the active clients outside U3, each in roster order.
    Two kinds of share of one client would open its input; this message cannot express them.
    """

    key: Index
    self_shares: tuple[Share, ...]
    key_shares: tuple[Share, ...]

    def __repr__(self) -> str:
        return f"UnmaskShares({len(self.self_shares)} self, {len(self.key_shares)} key)"


class Consistency(Message, frozen=True, tag=0x19):
    """Consistency round, up, malicious model: the signature around it is on the sender's U3."""

    key: Index


class ConsistencyProof(Message, frozen=True, tag=0x1A):
    """Consistency round, down: enough signatures on one U3, in roster order of the signers."""

    signers: bytes
    signatures: tuple[Signature, ...]


class Signed(Message, frozen=True, tag=0x1B):
    """Every upload in the malicious model: an encoded upload and its sender's signature."""

    body: bytes
    signature: Signature


OfflineUpload = Advertisement | Nonce | ShareBundles | BundleReport
OnlineUpload = MaskedInput | Consistency | UnmaskShares
Upload = OfflineUpload | OnlineUpload
UPLOADS: tuple[type[Upload], ...] = (
    Advertisement,
    ShareBundles,
    BundleReport,
    MaskedInput,
    Consistency,
    UnmaskShares,
)
RING_UPLOADS: tuple[type[Upload], ...] = (RingAdvertisement, Nonce, *UPLOADS[1:])
CHOSEN_UPLOADS: tuple[type[Upload], ...] = (ChosenAdvertisement, *UPLOADS[1:])
_UPLOADS_OF = {"complete": UPLOADS, "ring": RING_UPLOADS, "chosen": CHOSEN_UPLOADS}

_M = TypeVar("_M", bound=Message)
_HEADER = 5  # the longest MessagePack header of an array or a byte string
_PAIR = 7  # an array of two indices, each of at most 3 bytes
_SIGNED = 4 * _HEADER + SIGNATURE_SIZE


def encode(message: Message) -> bytes:
    """Return the canonical bytes of a message."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes, kind: type[_M], batch: BatchParams, *tasks: Task) -> _M:
    """Decode a message of a known kind (SPEC 5.2).

    Args:
        data: the whole message and nothing else.
        kind: the expected type.
        batch: bounds the length.
        *tasks: the tasks that a masked input may answer; they bound its length.

    Raises:
        DecodeError: too long, malformed, of another kind, or not the canonical encoding.
    """
    # Before anything is parsed: a sender cannot make the decoder allocate more than an honest one.
    if len(data) > max_size(kind, batch, *tasks):
        raise DecodeError("message too long")
    try:
        message = msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError:
        raise DecodeError(f"not a {kind.__name__}") from None
    # MessagePack has several encodings of one value. Signatures, contexts and replay protection
    # compare bytes, so two encodings of one message would be two messages.
    if encode(message) != data:
        raise DecodeError("encoding is not canonical")
    return message


def decode_upload(data: bytes, batch: BatchParams, *tasks: Task) -> Upload:
    """Decode a client's message of any round.

    Raises:
        DecodeError: as `decode`, or the tag is not one of an upload.
    """
    # The header of these arrays is one byte and so is the tag: the tag is the second byte.
    for kind in _UPLOADS_OF[batch.graph]:
        if data[1:2] == bytes([_tag(kind)]):
            return decode(data, kind, batch, *tasks)
    raise DecodeError("unknown message tag")


def keys_repeat(advertisements: Iterable[Advertisement]) -> bool:
    """Tell whether a public key stands in two places or has a second encoding (SPEC 6.2).

    X25519 reads a key modulo 2^255 - 19, so a key of 2^255 - 19 or more is another key in disguise,
    which a comparison of bytes would not notice.
    """
    keys = [key for a in advertisements for key in (a.channel_key, *a.mask_keys)]
    return len(set(keys)) != len(keys) or not all(map(is_canonical, keys))


def bundle_size(batch: BatchParams) -> int:
    """Return the size of a sealed bundle: 2M shares and a tag (SPEC 3.5)."""
    return 2 * batch.steps * SHARE_SIZE + TAG_SIZE


def max_size(kind: type[Message], batch: BatchParams, *tasks: Task) -> int:
    """Return the largest size of a message in bytes (SPEC 5.2).

    Every MessagePack header counts with its longest form, so the bound is a little too large.
    """
    n = batch.n
    to, source, near = _most_peers(batch)
    bitmap = _HEADER + (n + 7) // 8
    advertisement = 2 * (_HEADER + KEY_SIZE) + batch.steps * (_HEADER + KEY_SIZE)
    on_ring = advertisement + _HEADER + DIGEST_SIZE
    bundle = _HEADER + bundle_size(batch)
    if kind is Signed:
        uploads = _UPLOADS_OF[batch.graph]
        return _SIGNED + max(max_size(upload, batch, *tasks) for upload in uploads)
    bodies = {
        Advertisement: advertisement,
        RingAdvertisement: on_ring,
        KeyDirectory: bitmap + n * (_SIGNED + 5 * _HEADER + advertisement),
        NonceCommitments: bitmap + n * (_HEADER + DIGEST_SIZE),
        Nonce: _HEADER + NONCE_SIZE,
        RingDirectory: bitmap + n * (_HEADER + NONCE_SIZE) + near * (5 * _HEADER + on_ring),
        ChosenAdvertisement: advertisement + bitmap,
        ChosenDirectory: 2 * bitmap + near * (_SIGNED + 5 * _HEADER + advertisement + bitmap),
        ShareBundles: 2 * batch.steps * (_HEADER + DIGEST_SIZE) + to * bundle,
        BundleDelivery: bitmap + source * bundle,
        BundleReport: bitmap,
        StepRequest: bitmap + most_lost(batch) * _PAIR,
        MaskedInput: max((_vectors_size(task, n) for task in tasks), default=0),
        SurvivorSet: bitmap,
        Consistency: 0,
        ConsistencyProof: bitmap + n * (_HEADER + SIGNATURE_SIZE),
        UnmaskShares: source * (_HEADER + SHARE_SIZE),
    }
    return 4 * _HEADER + bodies[kind]


def most_lost(batch: BatchParams) -> int:
    """Return how many pairs can be lost while everybody keeps enough holders (SPEC 5.2)."""
    holders, _, _ = _most_peers(batch)
    ends = 1 if batch.graph == "chosen" else 2  # a pair there can cost one of its ends nothing
    return batch.n * (holders - batch.share_threshold) // ends


def _most_peers(batch: BatchParams) -> tuple[int, int, int]:
    """Return the most holders of a client, clients it holds shares of, and neighbours."""
    if batch.chosen is not None:
        k, choosers = batch.chosen.degree, batch.chosen.most_choosers
        return k, choosers, k + choosers
    near = batch.n if batch.ring is None else batch.ring.degree
    return near, near, near


def _vectors_size(task: Task, n: int) -> int:
    parts = zip(task.sections, task.fields(n), strict=True)
    return sum(_HEADER + packed_size(section.length, field.bits) for section, field in parts)


def encode_set(members: Collection[int], roster: tuple[int, ...]) -> bytes:
    """Return the bitmap of a subset: bit i % 8 of byte i // 8 is roster entry i (SPEC 5.4)."""
    present = frozenset(members)
    flags = np.fromiter(map(present.__contains__, roster), dtype=bool, count=len(roster))
    return np.packbits(flags, bitorder="little").tobytes()


def decode_set(bitmap: bytes, roster: tuple[int, ...]) -> tuple[int, ...]:
    """Return the members that a bitmap names, in roster order; the inverse of `encode_set`.

    Raises:
        DecodeError: wrong size, or a bit beyond the roster.
    """
    n = len(roster)
    if len(bitmap) != (n + 7) // 8 or int.from_bytes(bitmap, "little") >> n:
        raise DecodeError("not a bitmap over the roster")
    flags = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=n, bitorder="little")
    return tuple(compress(roster, flags.tolist()))


def _tag(kind: type[Message]) -> int:
    tag = kind.__struct_config__.tag
    return tag if isinstance(tag, int) else -1
