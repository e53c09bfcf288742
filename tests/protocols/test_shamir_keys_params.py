"""Sharing, key derivation, sealing, and the validation of parameters."""

import hashlib
import hmac
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_helpers import fixed_entropy, make_params

from protocols.errors import ConfigError, CryptoError, DecodeError
from protocols.graph import complete
from protocols.params import AggregationParams, Section, default_threshold
from protocols.primitives import shamir
from protocols.primitives.keys import KeyPair, draw, frame, hkdf, seal, unseal


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


def test_short_entropy_is_refused():
    with pytest.raises(CryptoError):
        draw(lambda size: bytes(size - 1), 32)


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_framing_is_injective(a, b):
    assert (frame(*a) == frame(*b)) == (a == b)


def test_hkdf_separates_labels_contexts_and_their_borders():
    outputs = [
        hkdf(b"s", "a", b"x", b"y"),
        hkdf(b"s", "a", b"xy"),
        hkdf(b"s", "a", b"x", b"y", b""),
        hkdf(b"s", "b", b"x", b"y"),
        hkdf(b"t", "a", b"x", b"y"),
        hkdf(b"s", "ax", b"y"),
    ]
    assert len(set(outputs)) == len(outputs)
    assert hkdf(b"s", "a", length=64)[:32] == hkdf(b"s", "a")


def test_hkdf_is_rfc_5869():
    info = frame(b"codream-secure/secagg/1", b"label", b"context")
    prk = hmac.digest(bytes(32), b"secret", hashlib.sha256)
    assert hkdf(b"secret", "label", b"context") == hmac.digest(prk, info + b"\1", hashlib.sha256)


def test_x25519_agreement_is_symmetric_and_refuses_low_order():
    alice, bob = (KeyPair.from_private_bytes(seed * 32) for seed in (b"a", b"b"))
    assert alice.agree(bob.public) == bob.agree(alice.public)
    for low in (bytes(32), b"\1" + bytes(31)):
        with pytest.raises(CryptoError):
            alice.agree(low)


def test_sealing_binds_key_and_associated_data():
    sealed = seal(b"k" * 32, b"text", b"ad")
    assert unseal(b"k" * 32, sealed, b"ad") == b"text"
    flipped = bytes([sealed[0] ^ 1]) + sealed[1:]
    for key, data, ad in [
        (b"l" * 32, sealed, b"ad"),
        (b"k" * 32, sealed, b"da"),
        (b"k" * 32, flipped, b"ad"),
        (b"k" * 32, sealed[:-1], b"ad"),
    ]:
        with pytest.raises(CryptoError) as caught:
            unseal(key, data, ad)
        assert caught.value.__cause__ is None


def test_complete_graph():
    assert complete(3, (1, 3, 5)) == (1, 5)


def test_default_thresholds():
    assert {n: default_threshold(n) for n in (3, 4, 10, 12, 100)} == {
        3: 3, 4: 3, 10: 7, 12: 9, 100: 67,
    }  # fmt: skip


GOOD_SECTION = {"name": "g", "length": 5, "maximum": 15, "clip": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""}, {"name": "é" * 33}, {"length": 0}, {"length": 2**28 + 1}, {"maximum": 0},
        {"maximum": 2**24 + 1}, {"clip": 0.0}, {"clip": -1.0}, {"clip": float("nan")},
        {"clip": float("inf")},
    ],
)  # fmt: skip
def test_section_is_validated(change):
    with pytest.raises(ConfigError):
        Section(**{**GOOD_SECTION, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"session": bytes(31)}, {"step": -1}, {"step": 2**64}, {"kind": ""},
        {"broadcast_digest": b""}, {"roster": (1, 2)}, {"roster": (1, 2, 2, 4)},
        {"roster": (4, 3, 2, 1)}, {"roster": (-1, 2, 3, 4)}, {"roster": (1, 2, 3, 2**64)},
        {"roster": tuple(range(2**14 + 1))}, {"threshold": 2}, {"threshold": 5},
        {"sections": ()}, {"sections": (Section(**GOOD_SECTION),) * 2},
        {"sections": tuple(Section(**{**GOOD_SECTION, "name": str(i)}) for i in range(17))},
    ],
)  # fmt: skip
def test_params_are_validated(change):
    with pytest.raises(ConfigError):
        make_params(4, **change)


def test_overflow_is_refused_at_construction():
    n = 300
    with pytest.raises(ConfigError, match="32-bit"):
        make_params(n, ("g", 1, 24))
    assert isinstance(make_params(200, ("g", 1, 24)), AggregationParams)
