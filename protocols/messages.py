"""One frozen type per message, in round order, with one canonical encoding (SPEC 5).

Up: Advertisement, ShareBundles, MaskedInput, UnmaskShares.
Down: KeyDirectory, BundleDelivery, SurvivorSet.
Encoding: a MessagePack array [tag, field, ...]. The tag's high half is the format version.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, TypeVar

import msgspec

from protocols.errors import DecodeError
from protocols.keys import KEY_SIZE, TAG_SIZE
from protocols.packing import packed_size
from protocols.params import AggregationParams
from protocols.shamir import SIZE as SHARE_SIZE

BUNDLE_SIZE = 2 * SHARE_SIZE + TAG_SIZE

Key = Annotated[bytes, msgspec.Meta(min_length=KEY_SIZE, max_length=KEY_SIZE)]
Share = Annotated[bytes, msgspec.Meta(min_length=SHARE_SIZE, max_length=SHARE_SIZE)]
Bundle = Annotated[bytes, msgspec.Meta(min_length=BUNDLE_SIZE, max_length=BUNDLE_SIZE)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Advertisement(Message, frozen=True, tag=0x10):
    """Round 0, up: the client's two public keys."""

    channel_key: Key
    mask_key: Key


class KeyDirectory(Message, frozen=True, tag=0x11):
    """Round 0, down: who advertised (U1) and their keys, in roster order."""

    members: bytes
    channel_keys: tuple[Key, ...]
    mask_keys: tuple[Key, ...]


class ShareBundles(Message, frozen=True, tag=0x12):
    """Round 1, up: a sealed pair of shares for every neighbour in U1, in roster order."""

    bundles: tuple[Bundle, ...]


class BundleDelivery(Message, frozen=True, tag=0x13):
    """Round 1, down: who shared (U2) and their bundles for this client, in roster order."""

    sharers: bytes
    bundles: tuple[Bundle, ...]


class MaskedInput(Message, frozen=True, tag=0x14):
    """Round 2, up: the packed masked vector of every section, in section order."""

    sections: tuple[bytes, ...]


class SurvivorSet(Message, frozen=True, tag=0x15):
    """Round 2, down: whose masked inputs are in the sum (U3)."""

    survivors: bytes


class UnmaskShares(Message, frozen=True, tag=0x16):
    """Round 3, up: one share per member of U2, of one kind each, since the two lists are disjoint.

    `self_shares` are for U3, `key_shares` for U2 without U3, each in roster order.
    """

    self_shares: tuple[Share, ...]
    key_shares: tuple[Share, ...]

    def __repr__(self) -> str:
        return f"UnmaskShares({len(self.self_shares)} self, {len(self.key_shares)} key)"


Upload = Advertisement | ShareBundles | MaskedInput | UnmaskShares
UPLOADS: tuple[type[Upload], ...] = (Advertisement, ShareBundles, MaskedInput, UnmaskShares)

_M = TypeVar("_M", bound=Message)
_HEADER = 5  # the longest MessagePack header of an array or a byte string


def encode(message: Message) -> bytes:
    """The canonical bytes of a message."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes, kind: type[_M], params: AggregationParams) -> _M:
    """Decode a message of a known kind (SPEC 5.2).

    Args:
        data: the whole message and nothing else.
        kind: expected message type.
        params: bounds the length before anything is parsed.

    Raises:
        DecodeError: too long, malformed, of another kind, or not the canonical encoding.
    """
    if len(data) > max_size(kind, params):
        raise DecodeError("message too long")
    try:
        message = msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError:
        raise DecodeError(f"not a {kind.__name__}") from None
    if encode(message) != data:
        raise DecodeError("encoding is not canonical")
    return message


def decode_upload(data: bytes, params: AggregationParams) -> Upload:
    """Decode a client's message of whatever round.

    Raises:
        DecodeError: as `decode`, or the tag is not one of an upload.
    """
    for kind in UPLOADS:
        if data[1:2] == bytes([_tag(kind)]):
            return decode(data, kind, params)
    raise DecodeError("unknown message tag")


def max_size(kind: type[Message], params: AggregationParams) -> int:
    """Upper bound of the encoded size in bytes, tight but for MessagePack headers."""
    n = params.n
    bitmap = _HEADER + (n + 7) // 8
    if kind is MaskedInput:
        fields = [(s.length, params.field(s).bits) for s in params.sections]
        return 3 * _HEADER + sum(_HEADER + packed_size(*field) for field in fields)
    bodies = {
        Advertisement: 2 * (_HEADER + KEY_SIZE),
        KeyDirectory: bitmap + 2 * n * (_HEADER + KEY_SIZE),
        ShareBundles: n * (_HEADER + BUNDLE_SIZE),
        BundleDelivery: bitmap + n * (_HEADER + BUNDLE_SIZE),
        SurvivorSet: bitmap,
        UnmaskShares: n * (_HEADER + SHARE_SIZE),
    }
    return 4 * _HEADER + bodies[kind]


def encode_set(members: Collection[int], roster: tuple[int, ...]) -> bytes:
    """Bitmap of a subset: bit i % 8 of byte i // 8 stands for roster entry i (SPEC 5.4)."""
    bits = sum(1 << index for index, client in enumerate(roster) if client in members)
    return bits.to_bytes((len(roster) + 7) // 8, "little")


def decode_set(bitmap: bytes, roster: tuple[int, ...]) -> tuple[int, ...]:
    """Inverse of `encode_set`, in roster order.

    Raises:
        DecodeError: wrong size, or a bit beyond the roster.
    """
    bits = int.from_bytes(bitmap, "little")
    if len(bitmap) != (len(roster) + 7) // 8 or bits >> len(roster):
        raise DecodeError("not a bitmap over the roster")
    return tuple(client for index, client in enumerate(roster) if bits >> index & 1)


def _tag(kind: type[Message]) -> int:
    tag = kind.__struct_config__.tag
    return tag if isinstance(tag, int) else -1
