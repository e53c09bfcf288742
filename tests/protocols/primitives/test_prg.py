"""Masks are the specified expansion, uniform, and added without error."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.masking import _residues
from protocols.primitives import prg
from protocols.primitives.field import PrimeField

bits_of_field = st.integers(2, 32)


def slow_expand(key: bytes, field: PrimeField, length: int) -> list[int]:
    """SPEC 4.2, word by word; also says which positions were filled in order of rejection."""
    width = 1 if field.bits <= 8 else 2 if field.bits <= 16 else 4
    size = width * (4 * length + 400)
    stream = prg.keystream(key, size).tobytes()
    words = [int.from_bytes(stream[i : i + width], "little") for i in range(0, size, width)]
    limit = 2 ** (8 * width) // field.p * field.p
    result = [word % field.p if word < limit else None for word in words[:length]]
    spare = (word % field.p for word in words[length:] if word < limit)
    return [next(spare) if value is None else value for value in result]


@given(st.binary(min_size=32, max_size=32), bits_of_field, st.integers(0, 700))
def test_expand_is_the_specified_sampling(key, bits, length):
    field = PrimeField(bits)
    result = prg.expand(key, field, length)
    assert result.dtype == np.uint32
    assert result.tolist() == slow_expand(key, field, length)


def test_expand_does_not_depend_on_chunks(monkeypatch):
    field = PrimeField(15)
    results = []
    for block in (2, 14, 64, 1 << 16):
        monkeypatch.setattr(prg, "_BLOCK", block)
        results.append(prg.expand(b"k" * 32, field, 3000))
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_longer_expansion_agrees_where_the_own_word_was_accepted_and_only_there():
    """The sampling of SPEC 4.2 has no prefix property, and this is why nobody may assume one."""
    field, key = PrimeField(8), b"q" * 32
    words = prg.keystream(key, 2000)
    accepted = words < field.p
    short, long = prg.expand(key, field, 2000), prg.expand(key, field, 2600)[:2000]
    assert np.array_equal(short[accepted], long[accepted])
    assert (~accepted).any()
    assert not np.array_equal(short, long)


@pytest.mark.parametrize("bits", [2, 5, 8, 11, 16, 26, 32])
@pytest.mark.parametrize("count", [1, 127, 128, 129, 300])
def test_masks_are_added_and_taken_back_whatever_their_number(bits, count):
    """Groups end at 128 masks; all signs equal is what would overflow a lane first."""
    field, length = PrimeField(bits), 37
    keys = [bytes([i % 251, i // 251]) * 16 for i in range(count)]
    start = np.arange(length, dtype=np.uint32) % field.p
    expected = sum(prg.expand(key, field, length).astype(object) for key in keys)
    for sign in (1, -1):
        total = start.copy()
        prg.add_masks(total, [(key, sign) for key in keys], field)
        assert total.tolist() == ((start.astype(object) + sign * expected) % field.p).tolist()
        prg.add_masks(total, [(key, -sign) for key in keys], field)
        assert np.array_equal(total, start)


def test_lanes_hold_a_full_group_of_the_largest_words(monkeypatch):
    """Every word one below the acceptance bound, every sign: the extreme sums are exact."""
    monkeypatch.setattr(prg._Stream, "read_into", lambda self, buffer, size: buffer.fill(254))
    field = PrimeField(2)  # accepts bytes below 255
    for sign in (1, -1):
        total = np.zeros(7, dtype=np.uint32)
        prg.add_masks(total, [(bytes(32), sign)] * 128, field)
        assert total.tolist() == [sign * 128 * 254 % 3] * 7


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_a_masked_sum_may_start_from_a_plain_sum_above_p(dtype):
    start = np.array([0, 30, 31, 32, 250], dtype=dtype)
    residues = _residues(start, PrimeField(5))
    assert residues.dtype == np.uint32
    assert residues.tolist() == [0, 30, 0, 1, 2]
    within = _residues(start[:2], PrimeField(5))
    within[:] = 7
    assert start[:2].tolist() == [0, 30]


def test_keystream_is_aes_256_of_a_big_endian_counter_from_zero():
    block = Cipher(algorithms.AES(b"k" * 32), modes.ECB()).encryptor()  # noqa: S305
    expected = block.update(bytes(16) + (1).to_bytes(16, "big"))
    assert prg.keystream(b"k" * 32, 32).tobytes() == expected
    assert prg.keystream(b"k" * 32, 5).tobytes() == expected[:5]


def test_prg_checks_its_arguments():
    for call in (
        lambda: prg.keystream(b"short", 1),
        lambda: prg.expand(bytes(31), PrimeField(8), 1),
        lambda: prg.expand(bytes(32), PrimeField(8), -1),
    ):
        with pytest.raises(ConfigError):
            call()


# Upper 1e-6 quantile of chi-square with k degrees of freedom, by Wilson and Hilferty.
def chi_square_bound(k: int) -> float:
    return k * (1 - 2 / (9 * k) + 4.75 * (2 / (9 * k)) ** 0.5) ** 3


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_masks_are_uniform(bits):
    field = PrimeField(bits)
    draws = np.concatenate([prg.expand(bytes([i]) * 32, field, 20_000) for i in range(10)])
    counts = np.bincount(draws, minlength=field.p)
    assert len(counts) == field.p
    expected = draws.size / field.p
    assert ((counts - expected) ** 2 / expected).sum() < chi_square_bound(field.p - 1)
    # The top bit is exactly as often set as in GF(p): 5/13 for p = 13.
    top = np.count_nonzero(draws >> (bits - 1)) / draws.size
    exact = (field.p - 2 ** (bits - 1)) / field.p
    assert abs(top - exact) < 5 * (exact * (1 - exact) / draws.size) ** 0.5
