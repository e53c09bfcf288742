"""AES-256-CTR expansion of one-time keys into uniform field vectors (SPEC 4)."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocols.errors import ConfigError
from protocols.field import PrimeField

KEY_SIZE = 32
MAX_LENGTH = 1 << 32  # elements; far below the 2^128 blocks of the counter

_BLOCK = 1 << 16  # bytes of keystream held at once: small enough to stay in the cache
_ZERO_COUNTER = bytes(16)  # every key expands one vector, so no nonce is needed


class _Stream:
    """The keystream of one key, read piece by piece."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise ConfigError(f"a PRG key has {KEY_SIZE} bytes")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(_ZERO_COUNTER)).encryptor()

    def read(self, size: int) -> bytes:
        return self._encryptor.update(bytes(size))


def keystream(key: bytes, length: int) -> NDArray[np.uint8]:
    """AES-256-CTR keystream from an all-zero initial counter block (SPEC 4.1).

    Args:
        key: 32 secret bytes.
        length: number of bytes, at least 0.

    Returns:
        uint8, shape (length,), read-only.

    Raises:
        ConfigError: wrong key size, or length out of range.
    """
    _check_length(length)
    return np.frombuffer(_Stream(key).read(length), dtype=np.uint8)


def expand(key: bytes, field: PrimeField, length: int) -> NDArray[np.uint32]:
    """Expand a one-time key into a uniform vector over GF(p) (SPEC 4.2).

    Args:
        key: 32 secret bytes, used for one vector only.
        field: the field of the result.
        length: number of elements, at least 0.

    Returns:
        uint32, shape (length,), uniform on [0, p).

    Raises:
        ConfigError: wrong key size, or length out of range.
    """
    _check_length(length)
    total = np.zeros(length, dtype=np.int64)
    accumulate(total, key, field, 1)
    return field.reduce(total)


def accumulate(total: NDArray[np.int64], key: bytes, field: PrimeField, sign: int) -> None:
    """Add sign * (a representative of `expand(key, field, len(total))`) to `total`, in place.

    The accepted words are added unreduced: one reduction mod p after all masks gives the same
    residues and saves a division per mask and element. Each call moves an entry by less than
    2^32, so 2^30 calls cannot overflow.

    Args:
        total: int64, shape (length,), changed in place.
        key: 32 secret bytes.
        field: decides word width and acceptance bound.
        sign: +1 or -1.
    """
    dtype = _word_dtype(field)
    limit = _acceptance_limit(field, dtype)
    stream = _Stream(key)
    step = _BLOCK // dtype.itemsize
    rejected: list[int] = []
    for start in range(0, len(total), step):
        part = total[start : start + step]
        words = np.frombuffer(stream.read(part.size * dtype.itemsize), dtype=dtype)
        bad = _rejected(words, limit)
        if bad.size:
            words = words.copy()
            words[bad] = 0
            rejected.extend((bad + start).tolist())
        _add(part, words, sign)
    if rejected:
        total[rejected] += sign * _accepted(stream, dtype, limit, len(rejected))


def _check_length(length: int) -> None:
    if not 0 <= length <= MAX_LENGTH:
        raise ConfigError(f"length {length} is outside 0..{MAX_LENGTH}")


def _word_dtype(field: PrimeField) -> np.dtype[np.unsignedinteger]:
    """The narrowest little-endian word of 1, 2 or 4 bytes that holds the field."""
    width = next(size for size in (1, 2, 4) if field.bits <= 8 * size)
    return np.dtype(f"<u{width}")


def _acceptance_limit(field: PrimeField, dtype: np.dtype[np.unsignedinteger]) -> int:
    """Words at or above the largest multiple of p would be biased: they are rejected."""
    return (1 << (8 * dtype.itemsize)) // field.p * field.p


def _rejected(words: NDArray[np.unsignedinteger], limit: int) -> NDArray[np.intp]:
    return np.flatnonzero(words >= limit)


def _add(part: NDArray[np.int64], words: NDArray[np.unsignedinteger], sign: int) -> None:
    if sign > 0:
        np.add(part, words, out=part)
    else:
        np.subtract(part, words, out=part)


def _accepted(
    stream: _Stream, dtype: np.dtype[np.unsignedinteger], limit: int, count: int
) -> NDArray[np.int64]:
    """The next `count` accepted words, in stream order."""
    found = np.zeros(0, dtype=dtype)
    while found.size < count:
        words = np.frombuffer(stream.read((count - found.size) * dtype.itemsize), dtype=dtype)
        found = np.concatenate([found, words[words < limit]])
    return found.astype(np.int64)
