"""b-bit packing: an LSB-first, little-endian bit stream (SPEC 5.3)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError, DecodeError

MAX_BITS = 32

_T = TypeVar("_T", bound=np.generic)
_GROUP = 8  # eight values of b bits are exactly b bytes, for every b
_WORD = 64
_ALIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    8: np.dtype("<u1"),
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
}


def packed_size(length: int, bits: int) -> int:
    """Bytes that `length` values of `bits` bits take."""
    _check_bits(bits)
    return (length * bits + 7) // 8


def pack(values: NDArray[np.uint32], bits: int) -> bytes:
    """Pack values so that bit j of value i is bit (i * bits + j) of the stream.

    Args:
        values: uint32, shape (length,), every entry below 2^bits.
        bits: 1..32.

    Returns:
        packed_size(length, bits) bytes; the last byte is padded with zero bits.

    Raises:
        ConfigError: width out of range, or a value that does not fit it.
    """
    size = packed_size(len(values), bits)
    if values.size and int(values.max()) >> bits:
        raise ConfigError(f"a value does not fit {bits} bits")
    if bits in _ALIGNED:
        return values.astype(_ALIGNED[bits]).tobytes()
    columns = _padded(values, -len(values) % _GROUP).reshape(-1, _GROUP).T.astype(np.uint64)
    words = np.zeros((columns.shape[1], _words(bits)), dtype="<u8")
    for index, column in enumerate(columns):
        word, shift = divmod(index * bits, _WORD)
        words[:, word] |= column << np.uint64(shift)
        if shift + bits > _WORD:
            words[:, word + 1] |= column >> np.uint64(_WORD - shift)
    return words.view(np.uint8)[:, :bits].tobytes()[:size]


def unpack(data: bytes, bits: int, length: int) -> NDArray[np.uint32]:
    """Inverse of `pack`.

    Args:
        data: packed_size(length, bits) bytes.
        bits: 1..32.
        length: number of values.

    Returns:
        uint32, shape (length,), entries below 2^bits.

    Raises:
        ConfigError: width out of range.
        DecodeError: wrong size, or a padding bit that is not zero.
    """
    if len(data) != packed_size(length, bits):
        raise DecodeError("packed vector of wrong size")
    if length * bits % 8 and data[-1] >> (length * bits % 8):
        raise DecodeError("padding bits are not zero")
    if bits in _ALIGNED:
        return np.frombuffer(data, dtype=_ALIGNED[bits]).astype(np.uint32)
    raw = np.frombuffer(data, dtype=np.uint8)
    groups = _padded(raw, -len(raw) % bits).reshape(-1, bits)
    words = np.zeros((len(groups), _words(bits) * 8), dtype=np.uint8)
    words[:, :bits] = groups
    columns = words.view("<u8").T
    values = np.empty((len(groups), _GROUP), dtype=np.uint32)
    for index in range(_GROUP):
        values[:, index] = _column(columns, index * bits, bits)
    return values.reshape(-1)[:length].copy()


def _column(words: NDArray[np.uint64], offset: int, bits: int) -> NDArray[np.uint64]:
    """The `bits` bits from `offset` on, of every group."""
    word, shift = divmod(offset, _WORD)
    column = words[word] >> np.uint64(shift)
    if shift + bits > _WORD:
        column = column | (words[word + 1] << np.uint64(_WORD - shift))
    low: NDArray[np.uint64] = column & np.uint64((1 << bits) - 1)
    return low


def _words(bits: int) -> int:
    """64-bit words that hold one group."""
    return -(-bits * _GROUP // _WORD)


def _padded(values: NDArray[_T], extra: int) -> NDArray[_T]:
    return np.concatenate([values, np.zeros(extra, dtype=values.dtype)]) if extra else values


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ConfigError(f"width {bits} is outside 1..{MAX_BITS}")
