"""The server's side of the offline exchange (SPEC 6.1, 6.2, 6.9).

    CollectingKeys (ring: -> CollectingNonces) -> CollectingBundles -> Idle

One function takes in a message, one ends the round. Ending a round fixes who took part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from protocols import context, messages
from protocols.errors import CryptoError, NotEnoughSurvivors, RemoteProtocolError
from protocols.graph import Clients, Graph, choices, least_on_ring
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    ChosenAdvertisement,
    ChosenDirectory,
    KeyDirectory,
    Message,
    Nonce,
    NonceCommitments,
    RingAdvertisement,
    RingDirectory,
    ShareBundles,
    Upload,
    keys_repeat,
)
from protocols.params import BatchParams
from protocols.phases import Phase
from protocols.primitives.keys import KEY_SIZE, KeyPair
from protocols.seeds import Kind, commit_all, place

# X25519 with a low-order point gives zero whatever the private key is, so any key tests for it.
_PROBE = KeyPair.from_private_bytes(bytes(KEY_SIZE))

_U = TypeVar("_U", bound=Upload)


class Arrival(NamedTuple, Generic[_U]):
    """One message of a client, as it arrived. `signature` is None in the semi-honest model."""

    client: int
    message: _U
    data: bytes
    signature: bytes | None


Replies = Mapping[int, Message]
"""What the server sends at the end of a round, by client."""


@dataclass(frozen=True, slots=True)
class CollectingKeys:
    """Round 0: advertisements by client, the bytes they came in, and all keys in them."""

    received: dict[int, Advertisement]
    sent: dict[int, bytes]
    keys: set[bytes]


@dataclass(frozen=True, slots=True)
class CollectingNonces:
    """Draw, ring only: the advertisements of C, and the nonces."""

    advertised: Mapping[int, RingAdvertisement]
    sent: Mapping[int, bytes]
    received: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class CollectingBundles:
    """Round 1: the advertisements of U1, and the bundles."""

    off1: bytes
    graph: Graph
    advertised: Mapping[int, Advertisement]
    received: dict[int, ShareBundles]


@dataclass(frozen=True, slots=True)
class BatchKeys:
    """What the server keeps of a batch: the graph, and the public keys and commitments of U2."""

    off1: bytes
    graph: Graph
    advertised: Mapping[int, Advertisement]
    commitments: Mapping[int, tuple[bytes, ...]]

    @property
    def sharers(self) -> Clients:
        """U2, ascending."""
        return tuple(self.advertised)

    def commitment(self, client: int, key: int, kind: Kind) -> bytes:
        """Return a client's commitment to one of its seeds."""
        return self.commitments[client][place(key, kind)]


@dataclass(frozen=True, slots=True)
class Idle:
    """The batch has keys and no step is running."""

    keys: BatchKeys


@dataclass(frozen=True, slots=True)
class Failed:
    """The offline exchange failed. No step of this batch will ever run."""


# Round 0: advertise keys -----------------------------------------------------------------------


def keys_bound(batch: BatchParams, _: CollectingKeys | CollectingNonces) -> bytes:
    """Return the context of uploads that come before off1 is known."""
    return context.offline(batch)


def receive_keys(
    batch: BatchParams, state: CollectingKeys, arrival: Arrival[Advertisement]
) -> CollectingKeys:
    """Check and record a client's keys (SPEC 6.1).

    Raises:
        RemoteProtocolError: a wrong number of keys, a key that no peer could accept, or one that
            is not in canonical form; on the chosen graph a list that is not one of k others.
        DecodeError: the list is no bitmap.
    """
    phase, (client, message, data, _) = Phase.ADVERTISE_KEYS, arrival
    check_sender(client, batch.roster, state.received, phase)
    if len(message.mask_keys) != batch.steps:
        raise RemoteProtocolError(client, phase, "wrong number of mask keys")
    keys = (message.channel_key, *message.mask_keys)
    if isinstance(message, ChosenAdvertisement):
        choices(batch, client, message)
    if keys_repeat((message,)) or not state.keys.isdisjoint(keys):
        raise RemoteProtocolError(client, phase, "keys repeat")
    try:
        for public in keys:
            _PROBE.agree(public)
    except CryptoError:
        raise RemoteProtocolError(client, phase, "a key has low order") from None
    state.received[client] = message
    state.sent[client] = data
    state.keys.update(keys)
    return state


def end_keys(
    batch: BatchParams, state: CollectingKeys
) -> tuple[CollectingBundles | CollectingNonces, Replies]:
    """Fix U1 and send everyone's keys to it. On the ring, fix C (SPEC 6.1, 6.9).

    Raises:
        NotEnoughSurvivors: fewer than the threshold.
    """
    members = enough(batch, state.received, Phase.ADVERTISE_KEYS)
    bitmap = messages.encode_set(members, batch.roster)
    sent = {u: state.sent[u] for u in members}
    if batch.ring is not None:
        received = ((u, state.received[u]) for u in members)
        keys = {u: keys for u, keys in received if isinstance(keys, RingAdvertisement)}
        listed = tuple(advertised.nonce_commitment for advertised in keys.values())
        message = NonceCommitments(bitmap, listed)
        return CollectingNonces(keys, sent, {}), dict.fromkeys(members, message)
    advertised = {u: state.received[u] for u in members}
    if batch.chosen is not None:
        return _choices(batch, advertised, sent)
    directory = KeyDirectory(bitmap, tuple(sent.values()))
    off1 = context.advertised(context.offline(batch), sent.items())
    graph = Graph.of(batch, members, off1)
    return CollectingBundles(off1, graph, advertised, {}), dict.fromkeys(members, directory)


def _choices(
    batch: BatchParams, advertised: Mapping[int, Advertisement], sent: Mapping[int, bytes]
) -> tuple[CollectingBundles, Replies]:
    """Chosen graph: send everyone in U1 the keys of its neighbours (SPEC 6.1)."""
    lists = {
        u: choices(batch, u, message)
        for u, message in advertised.items()
        if isinstance(message, ChosenAdvertisement)
    }
    bitmap = messages.encode_set(lists, batch.roster)
    off1 = context.listed(context.offline(batch), bitmap)
    graph = Graph.of_choices(batch, lists)
    near = {u: graph.neighbours(u) for u in lists}
    replies = {
        u: ChosenDirectory(
            bitmap, messages.encode_set(peers, batch.roster), tuple(sent[v] for v in peers)
        )
        for u, peers in near.items()
    }
    return CollectingBundles(off1, graph, advertised, {}), replies


# Draw, ring only -------------------------------------------------------------------------------


def receive_nonce(
    batch: BatchParams, state: CollectingNonces, arrival: Arrival[Nonce]
) -> CollectingNonces:
    """Check and record a client's nonce (SPEC 6.9).

    Raises:
        RemoteProtocolError: the client did not commit to this nonce.
    """
    phase, (client, message, _, _) = Phase.DRAW_GRAPH, arrival
    check_sender(client, state.advertised, state.received, phase)
    found = context.nonce_commitment(context.offline(batch), client, message.nonce)
    if found != state.advertised[client].nonce_commitment:
        raise RemoteProtocolError(client, phase, "nonce is not what was committed to")
    state.received[client] = message.nonce
    return state


def end_nonces(batch: BatchParams, state: CollectingNonces) -> tuple[CollectingBundles, Replies]:
    """Fix U1, draw the ring, and send everyone the nonces and its neighbours' keys (SPEC 6.9).

    Raises:
        NotEnoughSurvivors: too few for the threshold, or for neighbourhoods to share in.
    """
    needed = least_on_ring(batch)
    if len(state.received) < needed:
        raise NotEnoughSurvivors(Phase.DRAW_GRAPH, len(state.received), needed)
    nonces = {u: state.received[u] for u in sorted(state.received)}
    committed = {u: keys.nonce_commitment for u, keys in state.advertised.items()}
    off1 = context.drawn(context.offline(batch), committed, nonces)
    graph = Graph.of(batch, tuple(nonces), off1)
    bitmap, listed = messages.encode_set(nonces, batch.roster), tuple(nonces.values())
    replies = {
        u: RingDirectory(bitmap, listed, tuple(state.sent[v] for v in graph.neighbours(u)))
        for u in nonces
    }
    advertised = {u: state.advertised[u] for u in nonces}
    return CollectingBundles(off1, graph, advertised, {}), replies


# Round 1: share keys ---------------------------------------------------------------------------


def bundles_bound(_: BatchParams, state: CollectingBundles) -> bytes:
    """Return the context that bundles are signed under."""
    return state.off1


def receive_bundles(
    batch: BatchParams, state: CollectingBundles, arrival: Arrival[ShareBundles]
) -> CollectingBundles:
    """Check and record a client's bundles (SPEC 6.2).

    Raises:
        RemoteProtocolError: wrong numbers or sizes, or commitments that were not advertised.
    """
    phase, (client, message, _, _) = Phase.SHARE_KEYS, arrival
    check_sender(client, state.advertised, state.received, phase)
    if len(message.bundles) != len(state.graph.recipients(client)):
        raise RemoteProtocolError(client, phase, "wrong number of bundles")
    if any(len(bundle) != messages.bundle_size(batch) for bundle in message.bundles):
        raise RemoteProtocolError(client, phase, "bundle of wrong size")
    if len(message.commitments) != 2 * batch.steps:
        raise RemoteProtocolError(client, phase, "wrong number of commitments")
    if commit_all(message.commitments) != state.advertised[client].commitment:
        raise RemoteProtocolError(client, phase, "commitments are not those advertised")
    state.received[client] = message
    return state


def end_bundles(batch: BatchParams, state: CollectingBundles) -> tuple[Idle, Replies]:
    """Fix U2 and route every bundle to its recipient (SPEC 6.2).

    Raises:
        NotEnoughSurvivors: |U2| below the threshold.
    """
    active = enough(batch, state.received, Phase.SHARE_KEYS)
    graph, received = state.graph, state.received
    sent = {u: dict(zip(graph.recipients(u), received[u].bundles, strict=True)) for u in active}
    sharers = messages.encode_set(active, batch.roster)
    replies = {
        v: BundleDelivery(sharers, tuple(sent[u][v] for u in graph.senders(v) if u in sent))
        for v in active
    }
    keys = BatchKeys(
        state.off1,
        state.graph,
        {u: state.advertised[u] for u in active},
        {u: state.received[u].commitments for u in active},
    )
    return Idle(keys), replies


def lost_pairs(reports: Mapping[int, frozenset[int]]) -> frozenset[tuple[int, int]]:
    """Return the pairs of which one could not open the other's bundle (SPEC 6.2).

    A report does not prove which of the two lies. So both lose the other, and nobody else: if
    reports put clients out, a minority could put out whom it likes.

    Args:
        reports: client -> the senders whose bundles it could not open.

    Returns:
        (smaller id, larger id) of every pair.
    """
    return frozenset((min(u, v), max(u, v)) for u, others in reports.items() for v in others)


# All rounds ------------------------------------------------------------------------------------

Group = tuple[int, ...] | Mapping[int, object] | frozenset[int]


def check_sender(client: int, allowed: Group, received: Group, phase: Phase) -> None:
    """Refuse a client that does not take part in a round or has already sent (SPEC 6).

    Raises:
        RemoteProtocolError: either.
    """
    if client not in allowed:
        raise RemoteProtocolError(client, phase, "not taking part in this round")
    if client in received:
        raise RemoteProtocolError(client, phase, "second message of this round")


def enough(batch: BatchParams, received: Group, phase: Phase) -> Clients:
    """Return the senders of a round in roster order.

    Raises:
        NotEnoughSurvivors: fewer than the threshold.
    """
    if len(received) < batch.threshold:
        raise NotEnoughSurvivors(phase, len(received), batch.threshold)
    return tuple(sorted(received))
