"""Packing is the specified bit stream, and `unpack` its strict inverse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocols.errors import ConfigError, DecodeError
from protocols.primitives.packing import pack, packed_size, unpack


@st.composite
def packable(draw):
    bits = draw(st.integers(1, 32))
    elements = st.integers(0, 2**bits - 1)
    return bits, draw(hnp.arrays(np.uint32, st.integers(0, 50), elements=elements))


@given(packable())
def test_packing_is_the_lsb_first_stream(case):
    bits, values = case
    stream = sum(int(v) << (i * bits) for i, v in enumerate(values))
    data = pack(values, bits)
    assert data == stream.to_bytes((len(values) * bits + 7) // 8, "little")
    assert len(data) == packed_size(len(values), bits)
    back = unpack(data, bits, len(values))
    assert back.dtype == np.uint32
    assert np.array_equal(back, values)


@given(packable(), st.data())
def test_unpack_refuses_wrong_sizes_and_padding(case, data):
    bits, values = case
    packed = pack(values, bits)
    for wrong in (packed + b"\0", packed[:-1] if packed else b"\1"):
        with pytest.raises(DecodeError, match="size"):
            unpack(wrong, bits, len(values))
    used = len(values) * bits % 8
    if used:
        bit = data.draw(st.integers(used, 7))
        with pytest.raises(DecodeError, match="padding"):
            unpack(packed[:-1] + bytes([packed[-1] | 1 << bit]), bits, len(values))


def test_pack_refuses_what_does_not_fit():
    with pytest.raises(ConfigError):
        pack(np.array([8], dtype=np.uint32), 3)
    for bits in (0, 33):
        with pytest.raises(ConfigError):
            packed_size(1, bits)
