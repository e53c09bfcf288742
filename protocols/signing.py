"""Signing keys of the malicious model; they sign uploads and presence (SPEC 3.11, 3.12)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocols import messages
from protocols.errors import CryptoError, LocalProtocolError
from protocols.graph import Clients
from protocols.messages import Message, Signed, Upload
from protocols.params import BatchParams, Task
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey, digest, u64, verify


def wrap(identity: SigningKey | None, client: int, context: bytes, message: Message) -> bytes:
    """Encode an upload; with an identity, sign it under the context it belongs to."""
    body = messages.encode(message)
    if identity is None:
        return body
    return messages.encode(Signed(body, identity.sign(_statement(client, context, body))))


def unwrap(data: bytes, batch: BatchParams, *tasks: Task) -> tuple[Upload, bytes, bytes | None]:
    """Decode an upload; the caller knows the context and checks the signature.

    Returns:
        The upload, its encoding, and in the malicious model its signature.

    Raises:
        DecodeError: either layer is malformed.
    """
    if not batch.malicious:
        return messages.decode_upload(data, batch, *tasks), data, None
    signed = messages.decode(data, Signed, batch, *tasks)
    upload = messages.decode_upload(signed.body, batch, *tasks)
    return upload, signed.body, signed.signature


def check(
    batch: BatchParams, client: int, context: bytes, body: bytes, signature: bytes | None
) -> None:
    """Check the signature of an upload; without identities there is nothing to check.

    Raises:
        CryptoError: it is missing, or not the client's on this upload in this context.
    """
    if not batch.malicious:
        return
    if signature is None:
        raise CryptoError("signature is missing")
    verify(batch.identity(client), signature, _statement(client, context, body))


def _statement(client: int, context: bytes, body: bytes) -> bytes:
    return digest("signed", context, u64(client), body)


def presence(session: bytes, nonce: bytes, client: int, channel: bytes) -> bytes:
    """Return what a client signs to prove that it is at its end of a link (SPEC 3.12).

    Args:
        session: 32 bytes.
        nonce: of the server, fresh for this question.
        client: id in the roster.
        channel: the transport's name of the client's end; empty if it has none.
    """
    return digest("presence", session, nonce, u64(client), channel)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the clients of the malicious model have: a signing key each, and one policy.

    Args:
        keys: client -> signing key.
        policy: the bounds of every client.
    """

    keys: Mapping[int, SigningKey]
    policy: Policy = field(default_factory=Policy)

    def identities(self, roster: Clients) -> tuple[bytes, ...]:
        """Return the public keys in roster order.

        Raises:
            LocalProtocolError: a client has no key.
        """
        if not set(roster) <= set(self.keys):
            raise LocalProtocolError("a client has no signing key")
        return tuple(self.keys[u].public for u in roster)
