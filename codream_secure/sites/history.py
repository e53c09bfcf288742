"""A digest of all that a site has received; every step of the protocol is bound to it.

Masks cancel only among sites with the same digest. Otherwise a server could give one site other
settings, or let it alone learn something, so that it knows the answers of all others and finds this
one's by subtraction (D3, D4; the selective training of Pasquini et al., CCS 2022).
"""

import hashlib

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.sites.wire import Hello, Images, Learn, encode

SIZE = 32


def beginning(hello: Hello) -> bytes:
    """Return the history of a site that has begun a run, 32 bytes."""
    received = (hello.version, hello.session, hello.options, hello.spec, hello.identities)
    encoded = msgspec.msgpack.encode(received, order="deterministic")
    return hashlib.sha256(b"codream-secure history" + encoded).digest()


def after(history: bytes, message: Learn | Images) -> bytes:
    """Return the history after one more message, 32 bytes."""
    return hashlib.sha256(history + encode(message)).digest()


def bound(history: bytes, broadcast: bytes) -> bytes:
    """Return the public bytes of a step: the history, then the request."""
    return history + broadcast


def asked(history: bytes, public: bytes) -> bytes:
    """Return the request in the public bytes of a step.

    Raises:
        RequestRefused: the step is bound to another history than this site's.
    """
    if public[:SIZE] != history:
        raise RequestRefused(
            "this site was told other things than the server says, or has missed some"
        )
    return public[SIZE:]
