"""Share bundles: what one client seals for each neighbour, and how it opens theirs (SPEC 3.5).

A bundle holds 2M shares: of every step the share of the mask-key seed, then of the self-mask seed.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocols.client.states import HeldShares, KeyShare, OwnSeeds, Party, SelfShare, Shared
from protocols.errors import CryptoError, DecodeError, RemoteProtocolError
from protocols.graph import Clients, share_points
from protocols.phases import Phase
from protocols.primitives import shamir
from protocols.primitives.keys import KeyPair, frame, hkdf, seal, u64, unseal
from protocols.seeds import Kind, SeedSlot

Shares = tuple[HeldShares, ...]
"""Of one owner, one entry a step."""


def commitments(party: Party, seeds: Iterable[OwnSeeds]) -> tuple[bytes, ...]:
    """Return the commitments to the seeds: per step mask key, then self mask (SPEC 3.7)."""
    off0 = party.off0
    return tuple(
        SeedSlot(off0, party.client, key, kind).commit(seed)
        for key, own in enumerate(seeds)
        for kind, seed in ((Kind.MASK_KEY, own.mask_key), (Kind.SELF_MASK, own.self_mask))
    )


def split_seeds(party: Party, seeds: tuple[OwnSeeds, ...], members: Clients) -> dict[int, Shares]:
    """Return the shares of every member, step by step (SPEC 3.6)."""
    steps = [_split_step(party, key, own, members) for key, own in enumerate(seeds)]
    return {member: tuple(step[member] for step in steps) for member in members}


def _split_step(party: Party, key: int, own: OwnSeeds, members: Clients) -> dict[int, HeldShares]:
    points, off0 = share_points(party.batch.roster), party.off0
    threshold = party.batch.share_threshold
    xs = [points[member] for member in members]
    mask_key, self_mask = (
        SeedSlot(off0, party.client, key, kind).split(seed, threshold, xs)
        for kind, seed in ((Kind.MASK_KEY, own.mask_key), (Kind.SELF_MASK, own.self_mask))
    )
    return {
        member: HeldShares(KeyShare(mask_key[x]), SelfShare(self_mask[x]))
        for member, x in zip(members, xs, strict=True)
    }


def agree(channel: KeyPair, peer: int, peer_key: bytes) -> bytes:
    """Return the secret that two channel keys have in common.

    Raises:
        RemoteProtocolError: the peer's key has low order.
    """
    try:
        return channel.agree(peer_key)
    except CryptoError as error:
        raise RemoteProtocolError(peer, Phase.SHARE_KEYS, str(error)) from None


def bundle_key(secret: bytes, edge: bytes, sender: int, recipient: int) -> bytes:
    """Return the key of one direction. It seals a single bundle (SPEC 3.3)."""
    return hkdf(secret, "bundle", edge, u64(sender), u64(recipient))


def bundle_associated(off1: bytes, sender: int, recipient: int) -> bytes:
    """Return what a bundle is authenticated together with (SPEC 3.5)."""
    return frame(b"bundle", off1, u64(sender), u64(recipient))


def seal_bundle(party: Party, key: bytes, held: Shares, off1: bytes, *, recipient: int) -> bytes:
    """Seal the shares of one neighbour (SPEC 3.5)."""
    plaintext = b"".join(v for step in held for v in (step.mask_key.value, step.self_mask.value))
    return seal(key, plaintext, bundle_associated(off1, party.client, recipient))


def open_bundle(party: Party, state: Shared, sender: int, sealed: bytes) -> Shares | None:
    """Open a neighbour's bundle and check it (SPEC 6.2).

    Returns:
        The shares of every step. None if the bundle does not open or holds a non-element.
    """
    associated = bundle_associated(state.off1, sender, party.client)
    try:
        plaintext = unseal(state.inbound_keys[sender], sealed, associated)
        return _parse_shares(plaintext, party.batch.steps)
    except (CryptoError, DecodeError):
        return None


def _parse_shares(plaintext: bytes, steps: int) -> Shares:
    starts = range(0, len(plaintext), shamir.SIZE)
    shares = [plaintext[start : start + shamir.SIZE] for start in starts]
    for share in shares:
        shamir.decode_element(share)
    if len(shares) != 2 * steps:
        raise DecodeError("wrong number of shares")
    pairs = zip(shares[::2], shares[1::2], strict=True)
    return tuple(HeldShares(KeyShare(a), SelfShare(b)) for a, b in pairs)
