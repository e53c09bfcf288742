"""Hashes, HKDF, AES-256-GCM, X25519 and Ed25519 keys (SPEC 3.1, 3.3 to 3.5, 3.11)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.errors import CryptoError

Entropy = Callable[[int], bytes]

KEY_SIZE = 32
TAG_SIZE = 16
SIGNATURE_SIZE = 64
VERSION = b"codream-secure/secagg/1"

_ZERO_NONCE = bytes(12)  # each bundle key seals one bundle, so the nonce never repeats under it


def frame(*items: bytes) -> bytes:
    """Concatenate items, each after its length as 4 bytes big-endian (SPEC 3.1).

    Injective: two different item lists never give the same bytes.
    """
    return b"".join(len(item).to_bytes(4, "big") + item for item in items)


def u64(value: int) -> bytes:
    """Return 8 bytes, big-endian. Raises OverflowError outside 0..2^64 - 1."""
    return value.to_bytes(8, "big")


def digest(label: str, *items: bytes) -> bytes:
    """Return SHA-256 of a label and an unambiguous list of byte strings (SPEC 3.1)."""
    return hashlib.sha256(frame(VERSION, label.encode(), *items)).digest()


def hkdf(secret: bytes, label: str, *context: bytes, length: int = KEY_SIZE) -> bytes:
    """HKDF-SHA256 with a label and an unambiguous context (SPEC 3.3).

    Args:
        secret: input key material.
        label: what the output is for; different labels give independent outputs.
        *context: byte strings bound into the output, order and borders included.
        length: output bytes, 1..8160.

    Returns:
        `length` secret bytes.

    Source: RFC 5869 with an empty salt; info = frame(VERSION, label, *context).
    """
    info = frame(VERSION, label.encode(), *context)
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


def draw(entropy: Entropy, size: int) -> bytes:
    """Ask `entropy` for `size` bytes and refuse a source that returns another number.

    Raises:
        CryptoError: the source is broken.
    """
    data = entropy(size)
    if len(data) != size:
        raise CryptoError("the entropy source returned a wrong number of bytes")
    return data


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair for one batch or key step, used with every peer (SPEC 3.4).

    Attributes:
        public: 32 bytes, sent to everyone.
    """

    public: bytes
    _private: X25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def from_private_bytes(cls, private: bytes) -> KeyPair:
        """Return the pair of a 32-byte private scalar; X25519 clamps it (RFC 7748)."""
        key = X25519PrivateKey.from_private_bytes(private)
        return cls(key.public_key().public_bytes_raw(), key)

    def agree(self, peer_public: bytes) -> bytes:
        """Return the X25519 shared secret, 32 bytes. Use it only as input of `hkdf`.

        Raises:
            CryptoError: the peer's key has low order, so that the secret would be zero, which
                everybody knows (RFC 7748 6.1).
        """
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise CryptoError("key agreement failed") from None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A client's long-term Ed25519 identity (SPEC 3.11).

    Attributes:
        public: 32 bytes; every client knows it by other means than the server.
    """

    public: bytes
    _private: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def from_private_bytes(cls, private: bytes) -> SigningKey:
        """Return the key of a 32-byte seed (RFC 8032)."""
        key = Ed25519PrivateKey.from_private_bytes(private)
        return cls(key.public_key().public_bytes_raw(), key)

    def sign(self, message: bytes) -> bytes:
        """Return a signature of 64 bytes."""
        return self._private.sign(message)


def is_canonical(public: bytes) -> bool:
    """Tell whether an X25519 key is below 2^255 - 19, so that it is not another key in disguise."""
    return int.from_bytes(public, "little") < (1 << 255) - 19


def verify(public: bytes, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        CryptoError: the signature is not one of this key on this message.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise CryptoError("signature is not valid") from None


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Encrypt with AES-256-GCM, under a key that seals one message only (SPEC 3.5).

    The nonce is zero. Two messages under one key would reveal their difference.

    Returns:
        len(plaintext) + 16 bytes.
    """
    return AESGCM(key).encrypt(_ZERO_NONCE, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Decrypt what `seal` returned.

    Raises:
        CryptoError: wrong key, wrong associated data or changed bytes.
    """
    try:
        return AESGCM(key).decrypt(_ZERO_NONCE, sealed, associated)
    except InvalidTag:
        raise CryptoError("decryption failed") from None
