"""The client's side of the offline exchange: keys and shares for M steps (SPEC 6.1, 6.2, 6.9).

Every step of the batch has seeds of its own, and no secret of one step is derived from another's:
opening a step reveals nothing about the others (SPEC 3.8). Only the channel keys and U1 are common
to the batch.

    Start -> Advertised (ring: -> Drawn) -> Shared -> Prepared
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec

from protocols import context, masking, messages, signing
from protocols.client.bundles import (
    agree,
    bundle_key,
    commitments,
    open_bundle,
    seal_bundle,
    split_seeds,
)
from protocols.client.states import (
    Advertised,
    Drawn,
    Move,
    OwnSeeds,
    Party,
    Prepared,
    Shared,
    StepKeys,
    server_fault,
)
from protocols.errors import CryptoError, DecodeError
from protocols.graph import Clients, least_on_ring, neighbourhood
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    BundleReport,
    KeyDirectory,
    Nonce,
    NonceCommitments,
    RingAdvertisement,
    RingDirectory,
    ShareBundles,
    keys_repeat,
)
from protocols.params import NONCE_SIZE
from protocols.phases import Phase
from protocols.primitives import shamir
from protocols.primitives.keys import KEY_SIZE, Entropy, KeyPair, draw
from protocols.seeds import commit_all

_A = TypeVar("_A", bound=Advertisement)


# Round 0: advertise keys -----------------------------------------------------------------------


def advertise_keys(party: Party, entropy: Entropy) -> Move:
    """Draw the channel key, two seeds a step, and on the ring a nonce (SPEC 6.1, 6.9)."""
    channel = draw(entropy, KEY_SIZE)
    seeds = tuple(
        OwnSeeds(shamir.draw_element(entropy), shamir.draw_element(entropy))
        for _ in range(party.batch.steps)
    )
    off0 = party.off0
    pairs = (
        masking.mask_key_pair(own.mask_key, party.client, key, off0)
        for key, own in enumerate(seeds)
    )
    message = Advertisement(
        KeyPair.from_private_bytes(channel).public,
        tuple(pair.public for pair in pairs),
        commit_all(commitments(party, seeds)),
    )
    nonce = b""
    if party.batch.ring is not None:
        nonce = draw(entropy, NONCE_SIZE)
        committed = context.nonce_commitment(off0, party.client, nonce)
        message = RingAdvertisement(
            message.channel_key, message.mask_keys, message.commitment, committed
        )
    # What was sent is kept byte for byte: the directory must list exactly this (SPEC 6.2).
    return Move(Advertised(channel, seeds, party.wrap(off0, message), nonce), message, off0)


# Draw, ring only -------------------------------------------------------------------------------


def draw_graph(party: Party, state: Advertised, message: NonceCommitments) -> Move:
    """Reveal this client's nonce, now that it knows everybody's commitment (SPEC 6.9).

    Raises:
        DecodeError, RemoteProtocolError: the commitments are not acceptable.
    """
    members = messages.decode_set(message.members, party.batch.roster)
    if len(members) < party.batch.threshold:
        raise server_fault(Phase.DRAW_GRAPH, "fewer commitments than the threshold")
    if len(members) != len(message.commitments):
        raise server_fault(Phase.DRAW_GRAPH, "numbers of commitments and of members differ")
    committed = dict(zip(members, message.commitments, strict=True))
    own = context.nonce_commitment(party.off0, party.client, state.nonce)
    if committed.get(party.client) != own:
        raise server_fault(Phase.DRAW_GRAPH, "own commitment missing or changed")
    return Move(Drawn(state, committed), Nonce(state.nonce), party.off0)


# Round 1: share keys ---------------------------------------------------------------------------


def share_keys(party: Party, state: Advertised, message: KeyDirectory) -> Move:
    """Complete graph: share all seeds with every member of U1, itself included (SPEC 6.2).

    Raises:
        DecodeError, RemoteProtocolError: the directory is not acceptable.
        PolicyError: U1 is outside the policy.
    """
    directory = _checked_directory(party, state, message)
    off1 = context.advertised(party.off0, zip(directory, message.advertisements, strict=True))
    members = tuple(directory)
    peers = neighbourhood(party.batch, party.client, members, off1)
    shared, bundles = _share(
        party, state, off1, {v: _Peer(directory[v], off1) for v in peers}, members
    )
    return Move(shared, bundles, off1)


def share_on_ring(party: Party, state: Drawn, message: RingDirectory) -> Move:
    """Ring: share all seeds with the neighbours, which the nonces decide (SPEC 6.2, 6.9).

    Raises:
        DecodeError, RemoteProtocolError: the directory is not acceptable.
        PolicyError: U1 is outside the policy.
    """
    nonces = _checked_nonces(party, state, message)
    off1 = context.drawn(party.off0, state.committed, nonces)
    members = tuple(nonces)
    peers = neighbourhood(party.batch, party.client, members, off1)
    if len(message.advertisements) != len(peers):
        raise server_fault(Phase.SHARE_KEYS, "numbers of advertisements and of neighbours differ")
    listed = dict(zip(peers, message.advertisements, strict=True))
    directory = {v: _ring_advertisement(party, state, v, data) for v, data in listed.items()}
    own = _advertisement(party, party.client, state.own.sent, RingAdvertisement)
    if keys_repeat((own, *directory.values())):
        raise server_fault(Phase.SHARE_KEYS, "keys repeat")
    ends = {v: {party.client: state.own.sent, v: data} for v, data in listed.items()}
    near = {v: _Peer(directory[v], context.edge(off1, ends[v])) for v in peers}
    others = tuple(v for v in members if v not in near)
    shared, bundles = _share(party, state.own, off1, near, peers)
    return Move(msgspec.structs.replace(shared, non_neighbours=others), bundles, off1)


class _Peer(NamedTuple):
    """A neighbour's keys, and the context that the bundle keys of both directions are bound to."""

    keys: Advertisement
    edge: bytes


def _share(
    party: Party, state: Advertised, off1: bytes, peers: Mapping[int, _Peer], holders: Clients
) -> tuple[Shared, ShareBundles]:
    """Split the seeds among the holders, and seal a bundle for every neighbour."""
    held = split_seeds(party, state.seeds, holders)
    channel = KeyPair.from_private_bytes(state.channel)
    secrets = {v: agree(channel, v, peer.keys.channel_key) for v, peer in peers.items()}
    own, edge = party.client, {v: peer.edge for v, peer in peers.items()}
    outbound = {v: bundle_key(secrets[v], edge[v], own, v) for v in peers}
    inbound = {v: bundle_key(secrets[v], edge[v], v, own) for v in peers}
    bundles = tuple(seal_bundle(party, outbound[v], held[v], off1, recipient=v) for v in peers)
    mask_keys = {v: peer.keys.mask_keys for v, peer in peers.items()}
    nxt = Shared(off1, mask_keys, inbound, state.seeds, held.get(own, ()))
    return nxt, ShareBundles(commitments(party, state.seeds), bundles)


def _checked_directory(
    party: Party, state: Advertised, message: KeyDirectory
) -> dict[int, Advertisement]:
    """Return client -> advertisement of U1, after every check of SPEC 6.2."""
    batch = party.batch
    members = messages.decode_set(message.members, batch.roster)
    if len(members) < batch.threshold:
        raise server_fault(Phase.SHARE_KEYS, "fewer keys than the threshold")
    if len(members) != len(message.advertisements):
        raise server_fault(Phase.SHARE_KEYS, "numbers of advertisements and of members differ")
    listed = dict(zip(members, message.advertisements, strict=True))
    if listed.get(party.client) != state.sent:
        raise server_fault(Phase.SHARE_KEYS, "own keys missing or changed")
    if party.policy is not None:
        party.policy.check_members(batch, len(members))
    directory = {u: _advertisement(party, u, data, Advertisement) for u, data in listed.items()}
    if any(len(keys.mask_keys) != batch.steps for keys in directory.values()):
        raise server_fault(Phase.SHARE_KEYS, "wrong number of mask keys")
    # One key in two places would let a server pass one client off as another.
    if keys_repeat(directory.values()):
        raise server_fault(Phase.SHARE_KEYS, "keys repeat")
    return directory


def _checked_nonces(party: Party, state: Drawn, message: RingDirectory) -> dict[int, bytes]:
    """Return client -> nonce of U1, after the checks of SPEC 6.9."""
    batch = party.batch
    members = messages.decode_set(message.members, batch.roster)
    if len(members) < least_on_ring(batch):
        raise server_fault(Phase.SHARE_KEYS, "fewer nonces than the threshold")
    if len(members) != len(message.nonces):
        raise server_fault(Phase.SHARE_KEYS, "numbers of nonces and of members differ")
    if party.client not in members:
        raise server_fault(Phase.SHARE_KEYS, "own nonce missing")
    if party.policy is not None:
        party.policy.check_members(batch, len(members))
    nonces = dict(zip(members, message.nonces, strict=True))
    shown = context.nonce_commitments(party.off0, nonces)
    # A nonce chosen after the others were known would let one party choose the ring.
    if any(state.committed.get(u) != commitment for u, commitment in shown.items()):
        raise server_fault(Phase.SHARE_KEYS, "a nonce that nobody committed to")
    return nonces


def _ring_advertisement(party: Party, state: Drawn, client: int, data: bytes) -> RingAdvertisement:
    message = _advertisement(party, client, data, RingAdvertisement)
    if message.nonce_commitment != state.committed[client]:
        raise server_fault(Phase.SHARE_KEYS, "advertisement of another client than the neighbour")
    if len(message.mask_keys) != party.batch.steps:
        raise server_fault(Phase.SHARE_KEYS, "wrong number of mask keys")
    return message


def _advertisement(party: Party, client: int, data: bytes, kind: type[_A]) -> _A:
    message, body, signature = signing.unwrap(data, party.batch)
    if not isinstance(message, kind):
        raise DecodeError(f"not a message of kind {kind.__name__}")
    try:
        signing.check(party.batch, client, party.off0, body, signature)
    except CryptoError as error:
        raise server_fault(Phase.SHARE_KEYS, str(error)) from None
    return message


# After round 1: open bundles -------------------------------------------------------------------


def open_bundles(party: Party, state: Shared, message: BundleDelivery) -> Move:
    """Open every bundle of U2. Report those that do not open (SPEC 6.2).

    Raises:
        DecodeError, RemoteProtocolError: the delivery is not acceptable.
    """
    batch = party.batch
    sharers = messages.decode_set(message.sharers, batch.roster)
    senders = _checked_senders(party, state, message, sharers)
    sealed = zip(senders, message.bundles, strict=True)
    opened = {u: open_bundle(party, state, u, data) for u, data in sealed}
    held = {u: shares for u, shares in opened.items() if shares is not None}
    unopened = [u for u in opened if u not in held]
    if state.own_shares:
        held[party.client] = state.own_shares
    unused = {
        key: StepKeys(own, {u: held[u][key] for u in sorted(held)})
        for key, own in enumerate(state.seeds)
    }
    mask_keys = {u: keys for u, keys in state.mask_keys.items() if u in held}
    report = BundleReport(messages.encode_set(unopened, batch.roster)) if unopened else None
    known = frozenset(state.non_neighbours)
    others = tuple(u for u in sharers if u in known)
    nxt = Prepared(state.off1, mask_keys, unused, non_neighbours=others)
    return Move(nxt, report, state.off1)


def _checked_senders(
    party: Party, state: Shared, message: BundleDelivery, sharers: Clients
) -> Clients:
    """Return the neighbours in U2, whose bundles these are, after every check of SPEC 6.2."""
    if len(sharers) < party.batch.threshold:
        raise server_fault(Phase.SHARE_KEYS, "fewer sharers than the threshold")
    if party.client not in sharers:
        raise server_fault(Phase.SHARE_KEYS, "own bundles missing")
    if not set(sharers) <= {party.client, *state.inbound_keys, *state.non_neighbours}:
        raise server_fault(Phase.SHARE_KEYS, "a sharer advertised no keys")
    senders = tuple(u for u in sharers if u in state.inbound_keys)
    if len(message.bundles) != len(senders):
        raise server_fault(Phase.SHARE_KEYS, "numbers of bundles and of sharers differ")
    return senders
