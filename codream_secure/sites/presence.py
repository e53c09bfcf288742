"""Proofs that a site is the one that it says it is: a node without its key cannot take its place.

A server with a roster of public keys sends every question a fresh nonce, and believes only a
signature over the session, the nonce and the site's number (SPEC 3.12). Without a roster a site is
whoever says so first: then the transport alone knows who is who.
"""

import os
from dataclasses import dataclass

from codream_secure.sites.session import SiteSettings, check_version
from codream_secure.sites.wire import VERSION, Claim, Who
from protocols.errors import CryptoError
from protocols.primitives.keys import verify
from protocols.signing import presence

_NONCE_SIZE = 32


def fresh_nonce() -> bytes:
    """Return the nonce of one question."""
    return os.urandom(_NONCE_SIZE)


def channel_of(node: int) -> bytes:
    """Return the name of a Flower node in a proof, 8 bytes.

    With Flower's node authentication the number stands for the node's key. So the proof ties the
    key in the roster to it.
    """
    return node.to_bytes(8, "big", signed=node < 0)


def proof_of(settings: SiteSettings, session: bytes, nonce: bytes, channel: bytes = b"") -> bytes:
    """Return a site's proof that it is there; empty for a site without a signing key."""
    if settings.identity is None:
        return b""
    return settings.identity.sign(presence(session, nonce, settings.client, channel))


def claim_of(settings: SiteSettings, message: Who) -> Claim:
    """Return which site this is, with its proof for the Flower node that it runs on.

    Raises:
        RequestRefused: the server speaks another version.
    """
    check_version(message.version)
    channel = channel_of(settings.node)
    proof = proof_of(settings, message.session, message.nonce, channel)
    return Claim(VERSION, settings.client, proof)


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """Checks at the server who a site is.

    Args:
        session: 32 bytes.
        identities: public keys in roster order; empty: nothing is checked.
    """

    session: bytes
    identities: tuple[bytes, ...] = ()

    def admits(self, site: int, nonce: bytes, proof: bytes, channel: bytes = b"") -> bool:
        """Return whether a proof is the site's own, for the question with this nonce."""
        if not self.identities:
            return True
        if not 0 <= site < len(self.identities):
            return False
        try:
            verify(self.identities[site], proof, presence(self.session, nonce, site, channel))
        except CryptoError:
            return False
        return True
