"""The client's side of the offline exchange: keys and shares for M steps (SPEC 6.1, 6.2, 6.9).

Every step of the batch has seeds of its own, and no secret of one step is derived from another's:
opening a step reveals nothing about the others (SPEC 3.8). Only the channel keys and U1 are common
to the batch.

    Start -> Advertised (ring: -> Drawn) -> Shared -> Prepared
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from protocols import context, masking, messages
from protocols.client.bundles import (
    agree,
    bundle_key,
    commitments,
    open_bundle,
    seal_bundle,
    split_seeds,
)
from protocols.client.directories import (
    advertisement,
    checked_choices,
    checked_directory,
    checked_members,
    checked_nonces,
    ring_advertisement,
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
from protocols.graph import Clients, choose, neighbourhood
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    BundleReport,
    ChosenAdvertisement,
    ChosenDirectory,
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

# Round 0: advertise keys -----------------------------------------------------------------------


def advertise_keys(party: Party, entropy: Entropy) -> Move:
    """Draw the channel key, two seeds a step, a nonce or whom to choose (SPEC 6.1, 6.9)."""
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
    chosen: Clients = ()
    if party.batch.ring is not None:
        nonce = draw(entropy, NONCE_SIZE)
        committed = context.nonce_commitment(off0, party.client, nonce)
        message = RingAdvertisement(*_fields(message), committed)
    if party.batch.chosen is not None:
        roster, k = party.batch.roster, party.batch.chosen.degree
        chosen = choose(party.client, roster, k, draw(entropy, NONCE_SIZE))
        message = ChosenAdvertisement(*_fields(message), messages.encode_set(chosen, roster))
    # What was sent is kept byte for byte: the directory must list exactly this (SPEC 6.2).
    nxt = Advertised(channel, seeds, party.wrap(off0, message), nonce, chosen)
    return Move(nxt, message, off0)


def _fields(message: Advertisement) -> tuple[bytes, tuple[bytes, ...], bytes]:
    return message.channel_key, message.mask_keys, message.commitment


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
    directory = checked_directory(party, state, message)
    off1 = context.advertised(party.off0, zip(directory, message.advertisements, strict=True))
    members = tuple(directory)
    peers = neighbourhood(party.batch, party.client, members, off1)
    near = {v: _Peer(directory[v], off1) for v in peers}
    shared, bundles = _share(party, state, off1, near, members)
    return Move(shared, bundles, off1)


def share_on_ring(party: Party, state: Drawn, message: RingDirectory) -> Move:
    """Ring: share all seeds with the neighbours, which the nonces decide (SPEC 6.2, 6.9).

    Raises:
        DecodeError, RemoteProtocolError: the directory is not acceptable.
        PolicyError: U1 is outside the policy.
    """
    nonces = checked_nonces(party, state, message)
    off1 = context.drawn(party.off0, state.committed, nonces)
    members = tuple(nonces)
    peers = neighbourhood(party.batch, party.client, members, off1)
    if len(message.advertisements) != len(peers):
        raise server_fault(Phase.SHARE_KEYS, "numbers of advertisements and of neighbours differ")
    listed = dict(zip(peers, message.advertisements, strict=True))
    directory = {v: ring_advertisement(party, state, v, data) for v, data in listed.items()}
    own = advertisement(party, party.client, state.own.sent, RingAdvertisement)
    if keys_repeat((own, *directory.values())):
        raise server_fault(Phase.SHARE_KEYS, "keys repeat")
    near = _peers(party, state.own, off1, listed, directory)
    others = tuple(v for v in members if v not in near)
    shared, bundles = _share(party, state.own, off1, near, peers)
    return Move(msgspec.structs.replace(shared, non_neighbours=others), bundles, off1)


def share_chosen(party: Party, state: Advertised, message: ChosenDirectory) -> Move:
    """Chosen graph: share all seeds with the clients that this one chose (SPEC 6.2).

    Raises:
        DecodeError, RemoteProtocolError: the directory is not acceptable.
        PolicyError: U1 is outside the policy.
    """
    members, neighbours = checked_members(party, message)
    listed = dict(zip(neighbours, message.advertisements, strict=True))
    directory = {
        v: advertisement(party, v, data, ChosenAdvertisement) for v, data in listed.items()
    }
    chosen = tuple(v for v in state.chosen if v in frozenset(members))
    choosers = checked_choices(party, directory, chosen)
    own = advertisement(party, party.client, state.sent, ChosenAdvertisement)
    if keys_repeat((own, *directory.values())):
        raise server_fault(Phase.SHARE_KEYS, "keys repeat")
    off1 = context.listed(party.off0, message.members)
    near = _peers(party, state, off1, listed, directory)
    shared, bundles = _share(party, state, off1, near, chosen)
    inbound = {v: key for v, key in shared.inbound_keys.items() if v in choosers}
    others = tuple(v for v in members if v not in choosers)
    shared = msgspec.structs.replace(
        shared, inbound_keys=inbound, non_neighbours=others, chosen=chosen
    )
    return Move(shared, bundles, off1)


def _peers(
    party: Party,
    state: Advertised,
    off1: bytes,
    sent: Mapping[int, bytes],
    keys: Mapping[int, Advertisement],
) -> dict[int, _Peer]:
    """Return the neighbours on a sparse graph, by the advertisements as sent and as decoded."""
    ends = {v: {party.client: state.sent, v: data} for v, data in sent.items()}
    return {v: _Peer(keys[v], context.edge(off1, ends[v])) for v in sent}


class _Peer(NamedTuple):
    """A neighbour's keys, and the context that the bundle keys of both directions are bound to."""

    keys: Advertisement
    edge: bytes


def _share(
    party: Party, state: Advertised, off1: bytes, peers: Mapping[int, _Peer], holders: Clients
) -> tuple[Shared, ShareBundles]:
    """Split the seeds among the holders, and seal a bundle for each of them that is a peer."""
    held = split_seeds(party, state.seeds, holders)
    channel = KeyPair.from_private_bytes(state.channel)
    secrets = {v: agree(channel, v, peer.keys.channel_key) for v, peer in peers.items()}
    own, edge = party.client, {v: peer.edge for v, peer in peers.items()}
    outbound = {v: bundle_key(secrets[v], edge[v], own, v) for v in peers if v in held}
    inbound = {v: bundle_key(secrets[v], edge[v], v, own) for v in peers}
    bundles = tuple(
        seal_bundle(party, key, held[v], off1, recipient=v) for v, key in outbound.items()
    )
    mask_keys = {v: peer.keys.mask_keys for v, peer in peers.items()}
    nxt = Shared(off1, mask_keys, inbound, state.seeds, held.get(own, ()))
    return nxt, ShareBundles(commitments(party, state.seeds), bundles)


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
    report = BundleReport(messages.encode_set(unopened, batch.roster)) if unopened else None
    known = frozenset(state.non_neighbours)
    others = tuple(u for u in sharers if u in known)
    there = held.keys() | frozenset(others)
    mask_keys = {u: keys for u, keys in state.mask_keys.items() if u in there}
    chosen = tuple(u for u in state.chosen if u in frozenset(sharers))
    nxt = Prepared(state.off1, mask_keys, unused, non_neighbours=others, chosen=chosen)
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
