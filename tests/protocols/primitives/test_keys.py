"""Entropy, framing, key derivation, agreement and sealing."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import CryptoError
from protocols.primitives.keys import KeyPair, draw, frame, hkdf, seal, unseal


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
