"""Sharing is the specified polynomial; t shares rebuild it and t - 1 say nothing."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_helpers import fixed_entropy

from protocols.errors import ConfigError, DecodeError
from protocols.primitives import shamir


def coefficients(threshold: int) -> list[int]:
    entropy = fixed_entropy()
    draws = (shamir.draw_element(entropy) for _ in range(threshold - 1))
    return [int.from_bytes(element, "big") for element in draws]


secrets32 = st.integers(0, shamir.P - 1).map(lambda value: value.to_bytes(32, "big"))


@given(secrets32, st.data())
def test_any_t_shares_rebuild_the_secret(secret, data):
    n = data.draw(st.integers(1, 12))
    t = data.draw(st.integers(1, n))
    shares = shamir.split(secret, coefficients(t), range(1, n + 1))
    chosen = data.draw(st.permutations(sorted(shares)))[: data.draw(st.integers(t, n))]
    assert shamir.reconstruct({x: shares[x] for x in chosen}, t) == secret


def test_any_t_minus_one_shares_fit_every_secret():
    shares = shamir.split(bytes(31) + b"\5", coefficients(3), range(1, 6))
    for pair in itertools.combinations(shares, 2):
        known = {x: int.from_bytes(shares[x], "big") for x in pair}
        for guess in (0, 1, shamir.P - 1):
            # The line through (0, guess) and the two shares always exists; t - 1 = 2 coefficients.
            (x1, y1), (x2, y2) = known.items()
            slope1, slope2 = ((y - guess) * pow(x, -1, shamir.P) for x, y in ((x1, y1), (x2, y2)))
            a2 = (slope1 - slope2) * pow(x1 - x2, -1, shamir.P) % shamir.P
            a1 = (slope1 - a2 * x1) % shamir.P
            assert all((guess + a1 * x + a2 * x * x - y) % shamir.P == 0 for x, y in known.items())


def test_shares_are_the_specified_polynomial():
    a2, a1 = coefficients(3)
    shares = shamir.split((9).to_bytes(32, "big"), (a2, a1), [1, 5, 6])
    for x, share in shares.items():
        assert int.from_bytes(share, "big") == (a2 * x * x + a1 * x + 9) % shamir.P


def test_sharing_refuses_bad_points_and_encodings():
    secret = bytes(32)
    for points in [(0, 1, 2), (1, 1, 2), (1,)]:
        with pytest.raises(ConfigError):
            shamir.split(secret, [7], points)
    with pytest.raises(ConfigError):
        shamir.reconstruct({1: secret}, 2)
    for wrong in (b"\xff" * 32, bytes(31), bytes(33), shamir.P.to_bytes(32, "big")):
        with pytest.raises(DecodeError):
            shamir.decode_element(wrong)
    with pytest.raises(DecodeError):
        shamir.split(b"\xff" * 32, [], [1])


def test_elements_are_drawn_by_rejection():
    answers = iter([b"\xff" * 32, shamir.P.to_bytes(32, "big"), b"\1" * 32])
    assert shamir.draw_element(lambda size: next(answers)) == b"\1" * 32


def test_p_is_prime_by_fermat():
    assert shamir.P == 2**256 - 189
    assert all(pow(base, shamir.P - 1, shamir.P) == 1 for base in (2, 3, 5, 7, 11))


def test_in_a_toy_field_t_minus_one_shares_fit_every_secret_equally_often(monkeypatch):
    monkeypatch.setattr(shamir, "P", 11)
    counts: dict[tuple[int, int], set[int]] = {}
    for secret in range(11):
        seen: dict[tuple[int, int], int] = {}
        for a2 in range(11):
            for a1 in range(11):
                shares = shamir.split(secret.to_bytes(32, "big"), (a2, a1), (1, 2, 3))
                pair = int.from_bytes(shares[1], "big"), int.from_bytes(shares[3], "big")
                seen[pair] = seen.get(pair, 0) + 1
        assert len(seen) == 121
        for pair, count in seen.items():
            counts.setdefault(pair, set()).add(count)
    assert set(map(frozenset, counts.values())) == {frozenset({1})}
