"""The digest of a session's record; every step of the protocol is bound to it (SPEC 6.11).

Masks cancel only among sites with the same digest. Otherwise a server could give one site other
settings, or let it alone learn something, so that it knows the answers of all others and finds this
one's by subtraction (D3, D4; the selective training of Pasquini et al., CCS 2022).
"""

import hashlib

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.sites.wire import Begin, Entry, Hello, Learn, Lesson, encode

SIZE = 32


def beginning(message: Hello | Begin) -> bytes:
    """Return the digest of a session that has begun, 32 bytes."""
    # The nonce is each site's own, and proves who it is alone.
    received = msgspec.structs.astuple(msgspec.structs.replace(message, nonce=b""))
    encoded = msgspec.msgpack.encode(received, order="deterministic")
    return hashlib.sha256(b"codream-secure history" + encoded).digest()


def after(history: bytes, item: Entry | Lesson) -> bytes:
    """Return the digest after one more item, 32 bytes.

    What one site alone has missed travels with the item and is not in the digest.
    """
    if isinstance(item, Entry):
        return hashlib.sha256(history + msgspec.msgpack.encode(item)).digest()
    bare = msgspec.structs.replace(item, missed=())
    if isinstance(bare, Learn):
        bare = msgspec.structs.replace(bare, requests=())
    return hashlib.sha256(history + encode(bare)).digest()


def name_of(request: bytes) -> bytes:
    """Return the digest that the record names a request by, 32 bytes."""
    return hashlib.sha256(request).digest()


def bound(history: bytes, broadcast: bytes) -> bytes:
    """Return the public bytes of a step: the digest, then the request."""
    return history + broadcast


def asked(history: bytes, public: bytes) -> bytes:
    """Return the request in the public bytes of a step.

    Raises:
        RequestRefused: the step is bound to another record than this site's.
    """
    if public[:SIZE] != history:
        raise RequestRefused(
            "this site was told other things than the server says, or has missed some"
        )
    return public[SIZE:]
