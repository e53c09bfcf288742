"""What a site was told before it is asked, as a digest to which every step is bound.

Masks cancel only among sites that were told the same. A server that gives one site other settings,
or lets it alone learn something, would otherwise know what all others answer, and by subtraction
what this one does (D3, D4; the selective training of Pasquini et al., CCS 2022).
"""

import hashlib

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.sites.wire import Hello, Images, Learn, encode

SIZE = 32


def beginning(hello: Hello) -> bytes:
    """Return the history of a site that has been told what a run is, 32 bytes."""
    told = (hello.version, hello.session, hello.options, hello.spec, hello.identities)
    encoded = msgspec.msgpack.encode(told, order="deterministic")
    return hashlib.sha256(b"codream-secure history" + encoded).digest()


def after(history: bytes, message: Learn | Images) -> bytes:
    """Return the history of a site that has been told one thing more, 32 bytes."""
    return hashlib.sha256(history + encode(message)).digest()


def bound(history: bytes, broadcast: bytes) -> bytes:
    """Return the public bytes of a step: the history, and what is asked."""
    return history + broadcast


def asked(history: bytes, public: bytes) -> bytes:
    """Return what is asked, from the public bytes of a step.

    Raises:
        RequestRefused: the server takes this site to have been told other things.
    """
    if public[:SIZE] != history:
        raise RequestRefused(
            "this site was told other things than the server says, or has missed some"
        )
    return public[SIZE:]
