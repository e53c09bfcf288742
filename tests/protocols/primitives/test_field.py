"""GF(p): the largest primes, the smallest field of a sum, and the arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.primitives.field import PrimeField

WIDTHS = range(2, 33)


bits_of_field = st.integers(2, 32)


def is_prime(value: int) -> bool:
    return value > 1 and all(value % d for d in range(2, int(value**0.5) + 1))


@pytest.mark.parametrize("bits", WIDTHS)
def test_p_is_the_largest_prime_below_two_to_the_b(bits):
    p = PrimeField(bits).p
    assert is_prime(p)
    assert not any(is_prime(q) for q in range(p + 1, 2**bits))


@pytest.mark.parametrize("bits", [-1, 0, 1, 33])
def test_field_width_is_checked(bits):
    with pytest.raises(ConfigError):
        PrimeField(bits)


@given(st.integers(1, 300), st.integers(1, 2**24))
def test_for_sum_is_the_smallest_field_without_overflow(terms, maximum):
    largest = terms * maximum
    fits = [b for b in WIDTHS if PrimeField(b).p > largest]
    if fits:
        assert PrimeField.for_sum(terms, maximum).bits == fits[0]
    else:
        with pytest.raises(ConfigError, match=f"{terms} inputs up to {maximum}"):
            PrimeField.for_sum(terms, maximum)


def test_for_sum_examples():
    assert PrimeField.for_sum(17, 15).bits == 9  # 255 > 251
    assert PrimeField.for_sum(3, 1).bits == 3  # 3 = p_2
    assert PrimeField.for_sum(10, 3).p == 31
    assert PrimeField.for_sum(10, 2**22).bits == 26
    for terms, maximum in [(0, 4), (3, 0), (300, 2**24)]:
        with pytest.raises(ConfigError):
            PrimeField.for_sum(terms, maximum)


@st.composite
def field_and_vectors(draw):
    field = PrimeField(draw(bits_of_field))
    element = st.one_of(st.integers(0, field.p - 1), st.sampled_from([0, 1, field.p - 1]))
    pairs = draw(st.lists(st.tuples(element, element), max_size=20))
    a, b = (np.array([pair[i] for pair in pairs], dtype=np.uint32) for i in (0, 1))
    return field, a, b


@given(field_and_vectors())
def test_field_operations_match_integers(case):
    field, a, b = case
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert field.add(a, b).tolist() == [(x + y) % field.p for x, y in pairs]
    assert field.subtract(a, b).tolist() == [(x - y) % field.p for x, y in pairs]
    assert field.negate(a).tolist() == [-x % field.p for x, _ in pairs]
    assert field.add(a, b).dtype == field.negate(a).dtype == np.uint32
    assert field.contains(a)
    assert not field.contains(np.append(a, np.uint32(field.p)))
    signed = a.astype(np.int64) - 3 * b.astype(np.int64)
    assert field.reduce(signed).tolist() == [(x - 3 * y) % field.p for x, y in pairs]
