"""AES-256-CTR expansion of one-time keys into uniform field vectors (SPEC 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocols.errors import ConfigError
from protocols.primitives.field import PrimeField

KEY_SIZE = 32
MAX_LENGTH = 1 << 32  # elements; far below the 2^128 blocks of the counter

SignedKey = tuple[bytes, int]

_AES_BLOCK = 16
_BLOCK = 1 << 17  # bytes of keystream at once: all buffers of a block stay in the L2 cache
_ZEROS = memoryview(bytes(_BLOCK + 32))  # a block is rounded up to whole rows
_SPARES = 1 << 10  # words drawn at once to replace rejected ones; few calls, little waste
_ROW = 8  # eight booleans of a comparison are one 64-bit word
# Masks that are added before a reduction. A signed lane of twice the word's width holds their sum:
# 128 * 255 < 2^15 for words of one byte, which is the tightest case.
_GROUP = 128


class _Stream:
    """The keystream of one key, from a byte offset on, read piece by piece.

    A counter that starts at zero needs no nonce, because every key expands one vector only.
    """

    def __init__(self, key: bytes, offset: int = 0) -> None:
        if len(key) != KEY_SIZE:
            raise ConfigError(f"a PRG key has {KEY_SIZE} bytes")
        counter, skipped = divmod(offset, _AES_BLOCK)
        mode = modes.CTR(counter.to_bytes(_AES_BLOCK, "big"))
        self._encryptor = Cipher(algorithms.AES(key), mode).encryptor()
        self._encryptor.update(bytes(skipped))

    def read(self, size: int) -> bytes:
        return self._encryptor.update(bytes(size))

    def read_into(self, buffer: NDArray[np.uint8], size: int) -> None:
        """Fill the first `size` bytes; `update_into` needs a buffer one AES block longer."""
        self._encryptor.update_into(_ZEROS[:size], buffer.data)


def keystream(key: bytes, length: int) -> NDArray[np.uint8]:
    """Return the AES-256-CTR keystream from an all-zero initial counter block (SPEC 4.1).

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
    total = np.zeros(length, dtype=np.uint32)
    add_masks(total, [(key, 1)], field)
    return total


def add_masks(total: NDArray[np.uint32], masks: Sequence[SignedKey], field: PrimeField) -> None:
    """Add sign * `expand(key, field, len(total))` mod p for every (key, sign), in place.

    A block of the vector takes the words of up to 128 masks unreduced, then one reduction, before
    the next block's turn. So the block stays in the cache, and a reduction serves many masks.

    Args:
        total: uint32, shape (length,), entries in [0, p), changed in place.
        masks: (32 secret bytes, +1 or -1) of every mask.
        field: decides word width and acceptance bound.

    Raises:
        ConfigError: wrong key size.
    """
    for first in range(0, len(masks), _GROUP):
        _add_group(total, masks[first : first + _GROUP], field)


def _add_group(total: NDArray[np.uint32], masks: Sequence[SignedKey], field: PrimeField) -> None:
    lanes = _Lanes(field, len(total))
    streams = [(_Words(key, field, len(total)), sign) for key, sign in masks]
    for start in range(0, len(total), lanes.size):
        part = total[start : start + lanes.size]
        lanes.clear()
        for words, sign in streams:
            words.next_into(lanes.buffer, part.size)
            lanes.add_buffer(sign)
        part[:] = field.add(part, lanes.reduced()[: part.size])


class _Words:
    """The words of one mask, in order, with rejected words already replaced (SPEC 4.2)."""

    def __init__(self, key: bytes, field: PrimeField, length: int) -> None:
        self._dtype = _word_dtype(field)
        self._limit = _acceptance_limit(field, self._dtype)
        self._key = key
        self._end = length * self._dtype.itemsize
        self._position = 0
        self._stream = _Stream(key)
        self._spare_stream: _Stream | None = None
        self._spares = np.zeros(0, dtype=self._dtype)

    def next_into(self, buffer: NDArray[np.uint8], count: int) -> None:
        """Write the next `count` words to the start of the buffer."""
        size = count * self._dtype.itemsize
        self._stream.read_into(buffer, size)
        self._position += size
        words = buffer[:-_AES_BLOCK].view(self._dtype)
        words[count:] = 0  # a remainder of the last block must not look rejected
        if int(words.max()) >= self._limit:
            self._replace_rejected(words)

    def _replace_rejected(self, words: NDArray[np.unsignedinteger]) -> None:
        """Replace rejected words. Rows of eight words are searched first, to branch less often."""
        limit = self._dtype.type(self._limit)
        hit = np.flatnonzero((words >= limit).view(np.uint64) != 0)
        rows = words.view(f"V{_ROW * self._dtype.itemsize}")
        found = rows[hit]
        candidates = found.view(self._dtype)
        rejected = np.flatnonzero(candidates >= limit)
        candidates[rejected] = self._replacements(rejected.size)
        rows[hit] = found

    def _replacements(self, count: int) -> NDArray[np.unsignedinteger]:
        """Return the next `count` accepted words behind the word of the last element."""
        if self._spare_stream is None:
            at_end = self._position == self._end
            self._spare_stream = self._stream if at_end else _Stream(self._key, self._end)
        while self._spares.size < count:
            size = max(_SPARES, count) * self._dtype.itemsize
            words = np.frombuffer(self._spare_stream.read(size), dtype=self._dtype)
            accepted = words[words < self._limit]
            self._spares = np.concatenate([self._spares, accepted])
        taken, self._spares = self._spares[:count], self._spares[count:]
        return taken


class _Lanes:
    """Sums of words in lanes of twice their width.

    A lane holds two neighbouring words, low + 2^w * high. One sum adds whole lanes, a second one
    adds the high halves. Then sum(low) = sum(lanes) - 2^w * sum(high) modulo the lane's size. So
    three passes over the words give both sums, and no pass widens a word.
    """

    def __init__(self, field: PrimeField, length: int) -> None:
        self._p = field.p
        self._word = _word_dtype(field)
        lane = np.dtype(f"<u{2 * self._word.itemsize}")
        self._shift = lane.type(8 * self._word.itemsize)
        self.size = _block_size(length, self._word.itemsize)
        count = self.size // 2
        self.buffer = np.zeros(count * lane.itemsize + _AES_BLOCK, dtype=np.uint8)
        self._lanes = self.buffer[: count * lane.itemsize].view(lane)
        self._sum, self._high, self._scratch = np.zeros((3, count), dtype=lane)

    def clear(self) -> None:
        self._sum.fill(0)
        self._high.fill(0)

    def add_buffer(self, sign: int) -> None:
        """Add sign * (the words in the buffer) to the sums."""
        operation = np.add if sign > 0 else np.subtract
        np.right_shift(self._lanes, self._shift, out=self._scratch)
        operation(self._high, self._scratch, out=self._high)
        operation(self._sum, self._lanes, out=self._sum)

    def reduced(self) -> NDArray[np.uint32]:
        """Return every word's sum mod p. Call `clear` before the next use."""
        np.left_shift(self._high, self._shift, out=self._scratch)
        np.subtract(self._sum, self._scratch, out=self._sum)
        for half in (self._sum, self._high):
            self._reduce(half)
        np.left_shift(self._high, self._shift, out=self._high)
        np.bitwise_or(self._sum, self._high, out=self._sum)
        words: NDArray[np.unsignedinteger] = self._sum.view(self._word)
        return words.astype(np.uint32)

    def _reduce(self, half: NDArray[np.unsignedinteger]) -> None:
        signed = half.view(f"<i{half.itemsize}")
        quotient = self._scratch.view(signed.dtype)
        p = signed.dtype.type(self._p)
        np.floor_divide(signed, p, out=quotient)
        np.multiply(quotient, p, out=quotient)
        np.subtract(signed, quotient, out=signed)


def _block_size(length: int, itemsize: int) -> int:
    """Return the words of a block: whole rows, in the fewest equal blocks that cover the vector."""
    blocks = max(-(-length * itemsize // _BLOCK), 1)
    return max(-(-length // (blocks * _ROW)), 1) * _ROW


def _check_length(length: int) -> None:
    if not 0 <= length <= MAX_LENGTH:
        raise ConfigError(f"length {length} is outside 0..{MAX_LENGTH}")


def _word_dtype(field: PrimeField) -> np.dtype[np.unsignedinteger]:
    """Return the narrowest little-endian word of 1, 2 or 4 bytes that holds the field."""
    width = next(size for size in (1, 2, 4) if field.bits <= 8 * size)
    return np.dtype(f"<u{width}")


def _acceptance_limit(field: PrimeField, dtype: np.dtype[np.unsignedinteger]) -> int:
    """Return the largest multiple of p up to 2^w, w the bits of a word.

    Words below it are uniform mod p. Accepting words above it would make small residues likelier.
    """
    return (1 << (8 * dtype.itemsize)) // field.p * field.p
