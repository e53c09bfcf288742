"""One frozen type per message, in round order, with one canonical encoding (SPEC 5).

Up: Advertisement, ShareBundles, BundleReport, MaskedInput, Consistency, UnmaskShares, and
ShareEvidence; in the malicious model each inside a Signed. Down: KeyDirectory, BundleDelivery,
StepRequest, SurvivorSet, ConsistencyProof, EvidenceRequest. On the ring RingAdvertisement and Nonce
go up, NonceCommitments and RingDirectory down.
Encoding: a MessagePack array [tag, field, ...]. The tag's high half is the format version; 3 marks
what only the ring has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import compress
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from protocols.errors import DecodeError
from protocols.params import DIGEST_SIZE, MAX_STEPS, NONCE_SIZE, BatchParams, Task
from protocols.primitives.keys import KEY_SIZE, SIGNATURE_SIZE, TAG_SIZE, is_canonical
from protocols.primitives.packing import packed_size
from protocols.primitives.shamir import SIZE as SHARE_SIZE

Key = Annotated[bytes, msgspec.Meta(min_length=KEY_SIZE, max_length=KEY_SIZE)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_SIZE, max_length=DIGEST_SIZE)]
NonceBytes = Annotated[bytes, msgspec.Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]
Share = Annotated[bytes, msgspec.Meta(min_length=SHARE_SIZE, max_length=SHARE_SIZE)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_SIZE, max_length=SIGNATURE_SIZE)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_STEPS)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Advertisement(Message, frozen=True, tag=0x10):
    """Round 0, up: a public key for bundles, one per step for masks, and the seeds' commitment."""

    channel_key: Key
    mask_keys: tuple[Key, ...]
    commitment: Digest


class KeyDirectory(Message, frozen=True, tag=0x11):
    """Round 0, down: who advertised (U1) and what, byte for byte, in roster order."""

    members: bytes
    advertisements: tuple[bytes, ...]


class RingAdvertisement(Advertisement, frozen=True, tag=0x30):
    """Round 0, up, ring: an Advertisement and the commitment of a nonce."""

    nonce_commitment: Digest


class NonceCommitments(Message, frozen=True, tag=0x31):
    """Round 0, down, ring: who advertised (C) and its nonce commitment, in roster order."""

    members: bytes
    commitments: tuple[Digest, ...]


class Nonce(Message, frozen=True, tag=0x32):
    """Draw, up: what the sender committed to."""

    nonce: NonceBytes


class RingDirectory(Message, frozen=True, tag=0x33):
    """Draw, down: who is on the ring (U1), all nonces, and the neighbours' advertisements."""

    members: bytes
    nonces: tuple[NonceBytes, ...]
    advertisements: tuple[bytes, ...]


class ShareBundles(Message, frozen=True, tag=0x12):
    """Round 1, up: a commitment per seed, and sealed shares for every neighbour in U1."""

    commitments: tuple[Digest, ...]
    bundles: tuple[bytes, ...]


class BundleDelivery(Message, frozen=True, tag=0x13):
    """Round 1, down: who shared (U2) and their bundles for this client, in roster order."""

    sharers: bytes
    bundles: tuple[bytes, ...]


class BundleReport(Message, frozen=True, tag=0x18):
    """After round 1, up: whose bundles did not open. Nobody sends it if all is well."""

    unopened: bytes


class StepRequest(Message, frozen=True, tag=0x17):
    """Round 2, down, beside the broadcast: which keys to use, and who masks with whom."""

    key: Index
    active: bytes


class MaskedInput(Message, frozen=True, tag=0x14):
    """Round 2, up: the packed masked vector of every section, in section order."""

    key: Index
    sections: tuple[bytes, ...]


class SurvivorSet(Message, frozen=True, tag=0x15):
    """Round 2, down: whose masked inputs are in the sum (U3)."""

    survivors: bytes


class UnmaskShares(Message, frozen=True, tag=0x16):
    """Round 3, up: one share, of either kind, for each active client of which shares are held.

    `self_shares` are for U3, `key_shares` for the active set without U3, each in roster order.
    """

    key: Index
    self_shares: tuple[Share, ...]
    key_shares: tuple[Share, ...]

    def __repr__(self) -> str:
        return f"UnmaskShares({len(self.self_shares)} self, {len(self.key_shares)} key)"


class Consistency(Message, frozen=True, tag=0x19):
    """Consistency round, up, malicious model: its signature says which U3 the client was told."""

    key: Index


class ConsistencyProof(Message, frozen=True, tag=0x1A):
    """Consistency round, down: at least t signatures on one U3, in roster order of the signers."""

    signers: bytes
    signatures: tuple[Signature, ...]


class EvidenceRequest(Message, frozen=True, tag=0x1C):
    """After a step, down, malicious model: whose shares the recipient must prove the origin of.

    Bitmaps of the owners of its self-mask and of its mask-key shares.
    """

    key: Index
    self_owners: bytes
    key_owners: bytes


class ShareEvidence(Message, frozen=True, tag=0x1D):
    """After a step, up, malicious model: per share the dealer's signature and a Merkle path.

    Self-mask shares first, then mask-key shares, each in roster order of the owners.
    """

    key: Index
    signatures: tuple[Signature, ...]
    paths: tuple[tuple[Digest, ...], ...]


class Signed(Message, frozen=True, tag=0x1B):
    """Every upload in the malicious model: an encoded upload and its sender's signature."""

    body: bytes
    signature: Signature


OfflineUpload = Advertisement | Nonce | ShareBundles | BundleReport
OnlineUpload = MaskedInput | Consistency | UnmaskShares | ShareEvidence
Upload = OfflineUpload | OnlineUpload
UPLOADS: tuple[type[Upload], ...] = (
    Advertisement,
    ShareBundles,
    BundleReport,
    MaskedInput,
    Consistency,
    UnmaskShares,
    ShareEvidence,
)
RING_UPLOADS: tuple[type[Upload], ...] = (RingAdvertisement, Nonce, *UPLOADS[1:])

_M = TypeVar("_M", bound=Message)
_HEADER = 5  # the longest MessagePack header of an array or a byte string
_SIGNED = 4 * _HEADER + SIGNATURE_SIZE


def encode(message: Message) -> bytes:
    """Return the canonical bytes of a message."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes, kind: type[_M], batch: BatchParams, *tasks: Task) -> _M:
    """Decode a message of a known kind (SPEC 5.2).

    Args:
        data: the whole message and nothing else.
        kind: expected message type.
        batch: bounds the length before anything is parsed.
        *tasks: the same, for masked inputs: those that one may be an answer to.

    Raises:
        DecodeError: too long, malformed, of another kind, or not the canonical encoding.
    """
    if len(data) > max_size(kind, batch, *tasks):
        raise DecodeError("message too long")
    try:
        message = msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError:
        raise DecodeError(f"not a {kind.__name__}") from None
    if encode(message) != data:
        raise DecodeError("encoding is not canonical")
    return message


def decode_upload(data: bytes, batch: BatchParams, *tasks: Task) -> Upload:
    """Decode a client's message of whatever round.

    Raises:
        DecodeError: as `decode`, or the tag is not one of an upload.
    """
    for kind in UPLOADS if batch.ring is None else RING_UPLOADS:
        if data[1:2] == bytes([_tag(kind)]):
            return decode(data, kind, batch, *tasks)
    raise DecodeError("unknown message tag")


def keys_repeat(advertisements: Iterable[Advertisement]) -> bool:
    """Tell whether any public key stands in two places, or could stand there in disguise.

    X25519 takes a key modulo 2^255 - 19, so a non-canonical key is a second name of another.
    """
    keys = [key for a in advertisements for key in (a.channel_key, *a.mask_keys)]
    return len(set(keys)) != len(keys) or not all(map(is_canonical, keys))


def bundle_size(batch: BatchParams) -> int:
    """Bytes of one sealed bundle: two shares per step, a tag, malicious: a signature (SPEC 3.5)."""
    signature = SIGNATURE_SIZE if batch.malicious else 0
    return 2 * batch.steps * SHARE_SIZE + signature + TAG_SIZE


def max_size(kind: type[Message], batch: BatchParams, *tasks: Task) -> int:
    """Upper bound of the encoded size in bytes, tight but for MessagePack headers."""
    n = batch.n
    near = n if batch.ring is None else batch.ring.degree
    bitmap = _HEADER + (n + 7) // 8
    advertisement = 2 * (_HEADER + KEY_SIZE) + batch.steps * (_HEADER + KEY_SIZE)
    on_ring = advertisement + _HEADER + DIGEST_SIZE
    bundles = near * (_HEADER + bundle_size(batch))
    if kind is Signed:
        return _SIGNED + max(max_size(upload, batch, *tasks) for upload in UPLOADS)
    bodies = {
        Advertisement: advertisement,
        RingAdvertisement: on_ring,
        KeyDirectory: bitmap + n * (_SIGNED + 5 * _HEADER + advertisement),
        NonceCommitments: bitmap + n * (_HEADER + DIGEST_SIZE),
        Nonce: _HEADER + NONCE_SIZE,
        RingDirectory: bitmap + n * (_HEADER + NONCE_SIZE) + near * (5 * _HEADER + on_ring),
        ShareBundles: 2 * batch.steps * (_HEADER + DIGEST_SIZE) + bundles,
        BundleDelivery: bitmap + bundles,
        BundleReport: bitmap,
        StepRequest: bitmap,
        MaskedInput: max((_vectors_size(task, n) for task in tasks), default=0),
        SurvivorSet: bitmap,
        Consistency: 0,
        ConsistencyProof: bitmap + n * (_HEADER + SIGNATURE_SIZE),
        UnmaskShares: near * (_HEADER + SHARE_SIZE),
        EvidenceRequest: 2 * bitmap,
        ShareEvidence: 2 * near * (2 * _HEADER + SIGNATURE_SIZE + _path_size(batch)),
    }
    return 4 * _HEADER + bodies[kind]


def _path_size(batch: BatchParams) -> int:
    """Longest Merkle path to one of a bundle's 2M shares."""
    return (2 * batch.steps - 1).bit_length() * (_HEADER + DIGEST_SIZE)


def _vectors_size(task: Task, n: int) -> int:
    parts = zip(task.sections, task.fields(n), strict=True)
    return sum(_HEADER + packed_size(section.length, field.bits) for section, field in parts)


def encode_set(members: Collection[int], roster: tuple[int, ...]) -> bytes:
    """Bitmap of a subset: bit i % 8 of byte i // 8 stands for roster entry i (SPEC 5.4)."""
    present = frozenset(members)
    flags = np.fromiter(map(present.__contains__, roster), dtype=bool, count=len(roster))
    return np.packbits(flags, bitorder="little").tobytes()


def decode_set(bitmap: bytes, roster: tuple[int, ...]) -> tuple[int, ...]:
    """Inverse of `encode_set`, in roster order.

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
