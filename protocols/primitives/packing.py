"""Packing of b-bit values into an LSB-first, little-endian bit stream (SPEC 5.3).

Eight values of b bits take exactly b bytes, for every b. Eight values are a *group*. Packing starts
with values in *slots* of 8, 16 or 32 bits. It merges neighbouring slots inside 64-bit words until
every word holds one *run* of bits, joins the runs of a group, and writes them at the group's byte
offset. Every pass is one numpy operation over contiguous words, so no loop runs over single values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError, DecodeError

MAX_BITS = 32

_Words = NDArray[np.uint64]

_GROUP = 8
_WORD = 64
_ALIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    8: np.dtype("<u1"),
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
}


def packed_size(length: int, bits: int) -> int:
    """Return the number of bytes that `length` values of `bits` bits take."""
    _check_bits(bits)
    return (length * bits + 7) // 8


def pack(values: NDArray[np.uint32], bits: int) -> bytes:
    """Pack values: bit j of value i becomes bit (i * bits + j) of the stream.

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
    groups = -(-len(values) // _GROUP)
    slots = np.zeros(groups * _GROUP, dtype=f"<u{_slot(bits) // 8}")
    slots[: len(values)] = values
    words = slots.view("<u8")
    _merge(words, bits)
    out = np.zeros(_touched_bytes(groups, bits), dtype=np.uint8)
    # The last word of a group reaches into the next group with zero bits. Words are
    # written in reverse order, so that the next group's first word overwrites those zeros.
    for index, word in reversed([*enumerate(_joined(words.reshape(groups, _runs(bits)), bits))]):
        _word_of_groups(out, groups, bits, index)[:] = word
    return out[:size].tobytes()


def unpack(data: bytes, bits: int, length: int) -> NDArray[np.uint32]:
    """Return the values of a packed vector; the inverse of `pack`.

    Args:
        data: packed_size(length, bits) bytes.
        bits: 1..32.
        length: number of values.

    Returns:
        uint32, shape (length,), entries below 2^bits.

    Raises:
        ConfigError: width out of range.
        DecodeError: wrong size, or a padding bit that is not zero. Without that check one vector
            would have several encodings.
    """
    if len(data) != packed_size(length, bits):
        raise DecodeError("packed vector of wrong size")
    if length * bits % 8 and data[-1] >> (length * bits % 8):
        raise DecodeError("padding bits are not zero")
    if bits in _ALIGNED:
        return np.frombuffer(data, dtype=_ALIGNED[bits]).astype(np.uint32)
    groups = -(-length // _GROUP)
    raw = np.zeros(_touched_bytes(groups, bits), dtype=np.uint8)
    raw[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    words = [_word_of_groups(raw, groups, bits, i).copy() for i in range(_words(bits))]
    runs = _cut(words, bits).reshape(-1)
    _spread(runs, bits)
    return runs.view(f"<u{_slot(bits) // 8}")[:length].astype(np.uint32)


def _slot(bits: int) -> int:
    """Return the narrowest of 8, 16 and 32 bits that holds a value."""
    return next(slot for slot in (8, 16, 32) if bits <= slot)


def _runs(bits: int) -> int:
    """Return the number of 64-bit words whose slots hold one group."""
    return _slot(bits) * _GROUP // _WORD


def _merge(words: _Words, bits: int) -> None:
    """Merge the slots of every word to one run of bits at its low end, in place.

    Each round moves the upper of two neighbouring runs down to the end of the lower one.
    """
    slot, run, moving = _slot(bits), bits, np.empty_like(words)
    while slot < _WORD:
        np.bitwise_and(words, _every(2 * slot, run, slot), out=moving)
        np.bitwise_xor(words, moving, out=words)
        np.right_shift(moving, np.uint64(slot - run), out=moving)
        np.bitwise_or(words, moving, out=words)
        slot, run = 2 * slot, 2 * run


def _spread(words: _Words, bits: int) -> None:
    """Undo `_merge`, in place."""
    slot, run, moving = _WORD, bits * _WORD // _slot(bits), np.empty_like(words)
    while slot > _slot(bits):
        slot, run = slot // 2, run // 2
        np.bitwise_and(words, _every(2 * slot, run, run), out=moving)
        np.bitwise_xor(words, moving, out=words)
        np.left_shift(moving, np.uint64(slot - run), out=moving)
        np.bitwise_or(words, moving, out=words)


def _every(period: int, width: int, offset: int) -> np.uint64:
    """Return a word with `width` ones at `offset` in every `period` bits."""
    ones = ((1 << width) - 1) << offset
    return np.uint64(sum(ones << start for start in range(0, _WORD, period)))


def _joined(runs: _Words, bits: int) -> list[_Words]:
    """Join the runs of all groups, shape (groups, runs), to the words of the stream."""
    width = bits * _GROUP // _runs(bits)
    words = [np.zeros(len(runs), dtype="<u8") for _ in range(_words(bits))]
    for index, run in enumerate(runs.T):
        word, shift = divmod(index * width, _WORD)
        words[word] |= run << np.uint64(shift)
        if shift + width > _WORD:
            words[word + 1] |= run >> np.uint64(_WORD - shift)
    return words


def _cut(words: list[_Words], bits: int) -> _Words:
    """Undo `_joined`."""
    width = bits * _GROUP // _runs(bits)
    runs = np.empty((len(words[0]), _runs(bits)), dtype="<u8")
    for index in range(_runs(bits)):
        word, shift = divmod(index * width, _WORD)
        run = words[word] >> np.uint64(shift)
        if shift + width > _WORD:
            run |= words[word + 1] << np.uint64(_WORD - shift)
        runs[:, index] = run
    runs &= _every(_WORD, width, 0)
    return runs


def _word_of_groups(stream: NDArray[np.uint8], groups: int, bits: int, index: int) -> _Words:
    """Return a view of the 64-bit word number `index` of every group; groups overlap in it."""
    return np.ndarray((groups,), "<u8", stream, offset=8 * index, strides=(bits,))


def _touched_bytes(groups: int, bits: int) -> int:
    """Return the number of bytes that `_word_of_groups` touches."""
    return groups * bits + _words(bits) * _WORD // 8


def _words(bits: int) -> int:
    """Return the number of 64-bit words that hold a packed group."""
    return -(-bits * _GROUP // _WORD)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ConfigError(f"width {bits} is outside 1..{MAX_BITS}")
