"""Unique decoding finds up to half the spare values wrong, and never gives another answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import CryptoError
from protocols.primitives import decoding, shamir

elements = st.integers(0, shamir.P - 1)


@st.composite
def cases(draw):
    n = draw(st.integers(1, 14))
    t = draw(st.integers(1, n))
    xs = draw(st.lists(st.integers(1, 1 << 14), min_size=n, max_size=n, unique=True))
    polynomial = draw(st.lists(elements, min_size=t, max_size=t))
    right = {x: shamir.evaluate(polynomial, x) for x in xs}
    bad = draw(st.sets(st.sampled_from(xs)))
    shift = {x: draw(st.integers(1, shamir.P - 1)) for x in bad}
    return t, {x: (y + shift.get(x, 0)) % shamir.P for x, y in right.items()}, bad


@given(cases())
def test_as_many_as_half_the_spare_values_are_found(case):
    t, values, bad = case
    if 2 * len(bad) <= len(values) - t:
        assert decoding.errors(values, t) == bad
        return
    try:
        found = decoding.errors(values, t)
    except CryptoError:
        return
    # More are wrong than can be found: then another polynomial is near, and this one is not it.
    rest = {x: y for x, y in values.items() if x not in found}
    assert 2 * len(found) <= len(values) - t
    assert on_one_polynomial(rest, t)


def on_one_polynomial(values, t):
    first = dict(list(values.items())[:t])

    def through(z):
        total = 0
        for x, value in first.items():
            term = value
            for other in first:
                if other != x:
                    term = term * (z - other) * pow(x - other, -1, shamir.P) % shamir.P
            total += term
        return total % shamir.P

    return all(through(z) == y for z, y in values.items())


def test_random_values_are_on_no_polynomial():
    values = {x: pow(7, x, shamir.P) for x in range(1, 15)}
    with pytest.raises(CryptoError, match="too many values are wrong"):
        decoding.errors(values, 8)


def test_with_none_to_spare_nothing_can_be_found():
    assert decoding.errors({1: 5, 2: 9}, 2) == frozenset()


def test_an_error_that_points_at_another_place_is_not_believed():
    """With one value to spare a liar can choose the syndrome, and so what looks like the place."""
    values = dict.fromkeys(range(1, 5), 7)
    weight = shamir.barycentric_weights((1, 2, 3, 4))[0]
    values[1] = (7 + 3 * pow(weight, -1, shamir.P)) % shamir.P  # the syndrome is 3
    with pytest.raises(CryptoError, match="too many values are wrong"):
        decoding.errors(values, 3)
