"""The offline exchange: keys and shares for the M steps of a batch (SPEC 6.1, 6.2, 6.9).

Every step of the batch has seeds of its own, and nothing of one step is derived from another's:
opening a step says nothing of the others (SPEC 3.8). Only the channel keys and U1 are common.

Client:  Start -> Advertised (ring: -> Drawn) -> Shared -> Prepared
Server:  CollectingKeys (ring: -> CollectingNonces) -> CollectingBundles -> Stock
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec

from protocols import context, evidence, masking, messages, shamir, signing
from protocols.context import u64
from protocols.errors import (
    CryptoError,
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    RemoteProtocolError,
)
from protocols.graph import Clients, Graph, neighbourhood
from protocols.keys import (
    KEY_SIZE,
    Entropy,
    KeyPair,
    SigningKey,
    draw,
    frame,
    hkdf,
    is_canonical,
    seal,
    unseal,
    verify,
)
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    BundleReport,
    KeyDirectory,
    Message,
    Nonce,
    NonceCommitments,
    RingAdvertisement,
    RingDirectory,
    ShareBundles,
)
from protocols.params import NONCE_SIZE, BatchParams, Phase
from protocols.policy import Policy
from protocols.seeds import Kind, SeedSlot, commit_all

_A = TypeVar("_A", bound=Advertisement)


class Secret(msgspec.Struct, frozen=True):
    """Base of everything with a secret inside: shows nothing, and can be stored by its owner."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class SelfShare(Secret, frozen=True):
    """A share of a survivor's self-mask seed."""

    value: bytes


class KeyShare(Secret, frozen=True):
    """A share of a dropped client's mask-key seed."""

    value: bytes


class HeldShares(Secret, frozen=True):
    """Both shares this client holds of one peer for one step; at most one of them ever leaves."""

    mask_key: KeyShare
    self_mask: SelfShare


class OwnSeeds(Secret, frozen=True):
    """This client's two seeds of one step."""

    mask_key: bytes
    self_mask: bytes


class Dealt(Secret, frozen=True):
    """What proves the origin of one peer's shares: digests of them all, and its signature."""

    leaves: tuple[bytes, ...]
    signature: bytes


class StepKeys(Secret, frozen=True):
    """What one step needs: own seeds, and the shares held, by owner."""

    seeds: OwnSeeds
    held: dict[int, HeldShares]


class State(Secret, frozen=True, tag=True):
    """Base of the client's states."""


class Start(State, frozen=True):
    """Nothing sent yet."""


class Advertised(State, frozen=True):
    """Own keys are out; waiting for the directory, on the ring for the nonce commitments."""

    channel: bytes
    seeds: tuple[OwnSeeds, ...]
    sent: bytes
    nonce: bytes = b""


class Drawn(State, frozen=True):
    """The nonce is out; waiting for those of the others, and for the neighbours' keys."""

    own: Advertised
    committed: dict[int, bytes]


class Shared(State, frozen=True):
    """Bundles are out, the channel secret gone; waiting for the peers' bundles.

    `inbound_keys` are those of the neighbours, `strangers` the rest of U1, `own_shares` there if
    the client holds shares of its own seeds.
    """

    off1: bytes
    mask_keys: dict[int, tuple[bytes, ...]]
    inbound_keys: dict[int, bytes]
    seeds: tuple[OwnSeeds, ...]
    own_shares: tuple[HeldShares, ...]
    strangers: Clients = ()
    own_proof: Dealt | None = None


class Masked(Secret, frozen=True, tag=True):
    """A step whose masked input is out, own seeds gone; waiting for the survivor set.

    `strangers` are the active clients that no shares are held of.
    """

    key: int
    on: bytes
    held: dict[int, HeldShares]
    strangers: Clients = ()


class Confirmed(Secret, frozen=True, tag=True):
    """A step whose survivor set this client has signed; waiting for the others' signatures."""

    key: int
    on: bytes
    held: dict[int, HeldShares]
    survivors: tuple[int, ...]
    strangers: Clients = ()


class Unmasked(Secret, frozen=True, tag=True):
    """A step whose shares are out, malicious model; perhaps asked where they come from.

    `given` are the owners of the shares that left, by kind.
    """

    key: int
    bound: bytes
    given: dict[Kind, tuple[int, ...]]


class Prepared(State, frozen=True):
    """Ready for the steps whose keys are in `unused`, and perhaps in the middle of one.

    `strangers` are the members of U2 that are no neighbours, the client itself included unless it
    holds shares of its own. `cohort` is who took part in the last step, as far as this client was
    told; None before. `dealt` is, in the malicious model, what proves the origin of shares.
    """

    off1: bytes
    mask_keys: dict[int, tuple[bytes, ...]]
    unused: dict[int, StepKeys]
    current: Masked | Confirmed | Unmasked | None = None
    last_step: int = -1
    cohort: tuple[int, ...] | None = None
    strangers: Clients = ()
    dealt: dict[int, Dealt] = {}


@dataclass(frozen=True, slots=True)
class Party:
    """Who, in which batch, and on what conditions.

    Args:
        batch: agreed by all parties.
        client: own id.
        identity: signs every message in the malicious model; else None.
        policy: own bounds; None accepts everything.

    Raises:
        LocalProtocolError: the client is not in the roster, or not under this identity.
        PolicyError: the batch is outside the policy.
    """

    batch: BatchParams
    client: int
    identity: SigningKey | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.client not in self.batch.roster:
            raise LocalProtocolError(f"client {self.client} is not in the roster")
        own = self.batch.identity(self.client) if self.batch.malicious else None
        if own != (self.identity.public if self.identity else None):
            raise LocalProtocolError("the signing key is not the identity of the roster")
        if self.batch.malicious and self.policy is None:
            raise LocalProtocolError("the malicious model needs a policy")
        if self.policy is not None:
            self.policy.check_batch(self.batch)

    def wrap(self, bound: bytes, message: Message) -> bytes:
        """Encode an upload, signed under a context if this is the malicious model."""
        return signing.wrap(self.identity, self.client, bound, message)

    @property
    def off0(self) -> bytes:
        """The offline context."""
        return context.offline(self.batch)


def share_points(roster: tuple[int, ...]) -> dict[int, int]:
    """Client -> Shamir x: roster index + 1, whoever is missing from U1 (SPEC 3.6)."""
    return {client: index + 1 for index, client in enumerate(roster)}


# Client, round 0 -------------------------------------------------------------------------------


def advertise_keys(party: Party, entropy: Entropy) -> Advertised:
    """Draw the channel key, two seeds per step, and on the ring a nonce (SPEC 6.1, 6.9)."""
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
    fields = (
        KeyPair.from_private_bytes(channel).public,
        tuple(pair.public for pair in pairs),
        commit_all(commitments(party, seeds)),
    )
    if party.batch.ring is None:
        return Advertised(channel, seeds, party.wrap(off0, Advertisement(*fields)))
    nonce = draw(entropy, NONCE_SIZE)
    committed = context.nonce_commitment(off0, party.client, nonce)
    message = RingAdvertisement(*fields, committed)
    return Advertised(channel, seeds, party.wrap(off0, message), nonce)


def commitments(party: Party, seeds: Iterable[OwnSeeds]) -> tuple[bytes, ...]:
    """Per step the commitments to both seeds, mask-key seed first (SPEC 3.7)."""
    off0 = party.off0
    return tuple(
        SeedSlot(off0, party.client, key, kind).commit(seed)
        for key, own in enumerate(seeds)
        for kind, seed in ((Kind.MASK_KEY, own.mask_key), (Kind.SELF_MASK, own.self_mask))
    )


# Client, draw -----------------------------------------------------------------------------------


def draw_graph(party: Party, state: Advertised, message: NonceCommitments) -> tuple[Drawn, Nonce]:
    """Show the own nonce once everybody's commitment is there (SPEC 6.9).

    Raises:
        DecodeError, RemoteProtocolError: the commitments are not acceptable.
    """
    members = messages.decode_set(message.members, party.batch.roster)
    if len(members) < party.batch.threshold:
        raise lie(Phase.DRAW_GRAPH, "fewer commitments than the threshold")
    if len(members) != len(message.commitments):
        raise lie(Phase.DRAW_GRAPH, "numbers of commitments and of members differ")
    committed = dict(zip(members, message.commitments, strict=True))
    own = context.nonce_commitment(party.off0, party.client, state.nonce)
    if committed.get(party.client) != own:
        raise lie(Phase.DRAW_GRAPH, "own commitment missing or changed")
    return Drawn(state, committed), Nonce(state.nonce)


# Client, round 1 -------------------------------------------------------------------------------


def share_keys(
    party: Party, state: Advertised, message: KeyDirectory
) -> tuple[Shared, ShareBundles]:
    """Share all seeds on the complete graph: with every member of U1, itself included (SPEC 6.2).

    Raises:
        DecodeError, RemoteProtocolError: the directory is not acceptable.
    """
    directory = _checked_directory(party, state, message)
    off1 = context.advertised(party.off0, zip(directory, message.advertisements, strict=True))
    members = tuple(directory)
    peers = neighbourhood(party.batch, party.client, members, off1)
    return _share(party, state, off1, {v: _Peer(directory[v], off1) for v in peers}, members)


def share_on_ring(
    party: Party, state: Drawn, message: RingDirectory
) -> tuple[Shared, ShareBundles]:
    """Share all seeds with the neighbours on the ring that is drawn now (SPEC 6.2, 6.9).

    Raises:
        DecodeError, RemoteProtocolError: the directory is not acceptable.
    """
    nonces = _checked_nonces(party, state, message)
    off1 = context.drawn(party.off0, state.committed, nonces)
    members = tuple(nonces)
    peers = neighbourhood(party.batch, party.client, members, off1)
    if len(message.advertisements) != len(peers):
        raise lie(Phase.SHARE_KEYS, "numbers of advertisements and of neighbours differ")
    listed = dict(zip(peers, message.advertisements, strict=True))
    directory = {v: _ring_advertisement(party, state, v, data) for v, data in listed.items()}
    own = _advertisement(party, party.client, state.own.sent, RingAdvertisement)
    if keys_repeat((own, *directory.values())):
        raise lie(Phase.SHARE_KEYS, "keys repeat")
    ends = {v: {party.client: state.own.sent, v: data} for v, data in listed.items()}
    near = {v: _Peer(directory[v], context.edge(off1, ends[v])) for v in peers}
    strangers = tuple(v for v in members if v not in near)
    shared, bundles = _share(party, state.own, off1, near, peers)
    return msgspec.structs.replace(shared, strangers=strangers), bundles


class _Peer(NamedTuple):
    """A neighbour's keys, and what the bundle keys of both directions are bound to."""

    keys: Advertisement
    edge: bytes


def _share(
    party: Party, state: Advertised, off1: bytes, peers: Mapping[int, _Peer], holders: Clients
) -> tuple[Shared, ShareBundles]:
    """Split the seeds among the holders, and seal a bundle for every neighbour."""
    held = _split_seeds(party, state.seeds, holders)
    channel = KeyPair.from_private_bytes(state.channel)
    secrets = {v: _agree(channel, v, peer.keys.channel_key) for v, peer in peers.items()}
    own, off = party.client, {v: peer.edge for v, peer in peers.items()}
    outbound = {v: _bundle_key(secrets[v], off[v], own, v) for v in peers}
    inbound = {v: _bundle_key(secrets[v], off[v], v, own) for v in peers}
    bundles = tuple(_seal_bundle(party, outbound[v], held[v], off1, recipient=v) for v in peers)
    mask_keys = {v: peer.keys.mask_keys for v, peer in peers.items()}
    proof = _deal(party, held[own], off1, own) if party.batch.malicious else None
    nxt = Shared(off1, mask_keys, inbound, state.seeds, held.get(own, ()), own_proof=proof)
    return nxt, ShareBundles(commitments(party, state.seeds), bundles)


def _checked_nonces(party: Party, state: Drawn, message: RingDirectory) -> dict[int, bytes]:
    """Client -> nonce of U1, after the checks of SPEC 6.9."""
    batch = party.batch
    members = messages.decode_set(message.members, batch.roster)
    if len(members) < least_on_ring(batch):
        raise lie(Phase.SHARE_KEYS, "fewer nonces than the threshold")
    if len(members) != len(message.nonces):
        raise lie(Phase.SHARE_KEYS, "numbers of nonces and of members differ")
    if party.client not in members:
        raise lie(Phase.SHARE_KEYS, "own nonce missing")
    if party.policy is not None:
        party.policy.check_members(batch, len(members))
    nonces = dict(zip(members, message.nonces, strict=True))
    shown = context.nonce_commitments(party.off0, nonces)
    if any(state.committed.get(u) != commitment for u, commitment in shown.items()):
        raise lie(Phase.SHARE_KEYS, "a nonce that nobody committed to")
    return nonces


def _ring_advertisement(party: Party, state: Drawn, client: int, data: bytes) -> RingAdvertisement:
    message = _advertisement(party, client, data, RingAdvertisement)
    if message.nonce_commitment != state.committed[client]:
        raise lie(Phase.SHARE_KEYS, "advertisement of another client than the neighbour")
    if len(message.mask_keys) != party.batch.steps:
        raise lie(Phase.SHARE_KEYS, "wrong number of mask keys")
    return message


def least_on_ring(batch: BatchParams) -> int:
    """The smallest U1 in which everybody has enough neighbours to share with (SPEC 6.9)."""
    return max(batch.threshold, batch.share_threshold + 1)


def _checked_directory(
    party: Party, state: Advertised, message: KeyDirectory
) -> dict[int, Advertisement]:
    """Client -> advertisement of U1, after every check of SPEC 6.2."""
    batch = party.batch
    members = messages.decode_set(message.members, batch.roster)
    if len(members) < batch.threshold:
        raise lie(Phase.SHARE_KEYS, "fewer keys than the threshold")
    if len(members) != len(message.advertisements):
        raise lie(Phase.SHARE_KEYS, "numbers of advertisements and of members differ")
    listed = dict(zip(members, message.advertisements, strict=True))
    if listed.get(party.client) != state.sent:
        raise lie(Phase.SHARE_KEYS, "own keys missing or changed")
    if party.policy is not None:
        party.policy.check_members(batch, len(members))
    directory = {u: _advertisement(party, u, data, Advertisement) for u, data in listed.items()}
    if any(len(keys.mask_keys) != batch.steps for keys in directory.values()):
        raise lie(Phase.SHARE_KEYS, "wrong number of mask keys")
    if keys_repeat(directory.values()):
        raise lie(Phase.SHARE_KEYS, "keys repeat")
    return directory


def _advertisement(party: Party, client: int, data: bytes, kind: type[_A]) -> _A:
    message, body, signature = signing.unwrap(data, party.batch)
    if not isinstance(message, kind):
        raise DecodeError(f"not a message of kind {kind.__name__}")
    try:
        signing.check(party.batch, client, party.off0, body, signature)
    except CryptoError as error:
        raise lie(Phase.SHARE_KEYS, str(error)) from None
    return message


def keys_repeat(advertisements: Iterable[Advertisement]) -> bool:
    """Whether any public key stands in two places, or could in disguise."""
    keys = [key for a in advertisements for key in (a.channel_key, *a.mask_keys)]
    return len(set(keys)) != len(keys) or not all(map(is_canonical, keys))


def _split_seeds(
    party: Party, seeds: tuple[OwnSeeds, ...], members: tuple[int, ...]
) -> dict[int, tuple[HeldShares, ...]]:
    """Member -> its shares, step by step."""
    steps = [_split_step(party, key, own, members) for key, own in enumerate(seeds)]
    return {member: tuple(step[member] for step in steps) for member in members}


def _split_step(
    party: Party, key: int, own: OwnSeeds, members: tuple[int, ...]
) -> dict[int, HeldShares]:
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


def _agree(channel: KeyPair, peer: int, peer_key: bytes) -> bytes:
    try:
        return channel.agree(peer_key)
    except CryptoError as error:
        raise RemoteProtocolError(peer, Phase.SHARE_KEYS, str(error)) from None


def _bundle_key(secret: bytes, edge: bytes, sender: int, recipient: int) -> bytes:
    return hkdf(secret, "bundle", edge, u64(sender), u64(recipient))


def _bundle_associated(off1: bytes, sender: int, recipient: int) -> bytes:
    return frame(b"bundle", off1, u64(sender), u64(recipient))


def _seal_bundle(
    party: Party, key: bytes, held: tuple[HeldShares, ...], off1: bytes, *, recipient: int
) -> bytes:
    plaintext = b"".join(_values(held))
    if party.batch.malicious:
        plaintext += _deal(party, held, off1, recipient).signature
    return seal(key, plaintext, _bundle_associated(off1, party.client, recipient))


def _values(held: tuple[HeldShares, ...]) -> tuple[bytes, ...]:
    """The 2M shares in the order of a bundle (SPEC 3.5)."""
    return tuple(v for step in held for v in (step.mask_key.value, step.self_mask.value))


def _deal(party: Party, held: tuple[HeldShares, ...], off1: bytes, recipient: int) -> Dealt:
    """Sign what one recipient is dealt (SPEC 3.12)."""
    if party.identity is None:
        raise LocalProtocolError("shares are signed in the malicious model only")
    leaves = evidence.leaves(_values(held))
    root = evidence.root(leaves)
    signed = evidence.statement(off1, party.client, recipient, root)
    return Dealt(leaves, party.identity.sign(signed))


# Client, after round 1 -------------------------------------------------------------------------


def open_bundles(
    party: Party, state: Shared, message: BundleDelivery
) -> tuple[Prepared, BundleReport | None]:
    """Open every bundle of U2, and report those that do not open (SPEC 6.2).

    Raises:
        DecodeError, RemoteProtocolError: the delivery is not acceptable.
    """
    batch = party.batch
    sharers = messages.decode_set(message.sharers, batch.roster)
    senders = _checked_senders(party, state, message, sharers)
    sealed = zip(senders, message.bundles, strict=True)
    opened = {u: _open_bundle(party, state, u, data) for u, data in sealed}
    taken = {u: bundle for u, bundle in opened.items() if bundle is not None}
    held = {u: shares for u, (shares, _) in taken.items()}
    dealt = {u: proof for u, (_, proof) in taken.items() if proof is not None}
    if state.own_shares:
        held[party.client] = state.own_shares
    if state.own_proof is not None:
        dealt[party.client] = state.own_proof
    unused = {
        key: StepKeys(own, {u: held[u][key] for u in sorted(held)})
        for key, own in enumerate(state.seeds)
    }
    mask_keys = {u: keys for u, keys in state.mask_keys.items() if u in held}
    unopened = [u for u in opened if u not in taken]
    report = BundleReport(messages.encode_set(unopened, batch.roster)) if unopened else None
    known = {*state.strangers}
    strangers = tuple(u for u in sharers if u in known)
    return Prepared(state.off1, mask_keys, unused, strangers=strangers, dealt=dealt), report


def _checked_senders(
    party: Party, state: Shared, message: BundleDelivery, sharers: Clients
) -> Clients:
    """The neighbours in U2, whose bundles these are, after every check of SPEC 6.2."""
    if len(sharers) < party.batch.threshold:
        raise lie(Phase.SHARE_KEYS, "fewer sharers than the threshold")
    if party.client not in sharers:
        raise lie(Phase.SHARE_KEYS, "own bundles missing")
    if not set(sharers) <= {party.client, *state.inbound_keys, *state.strangers}:
        raise lie(Phase.SHARE_KEYS, "a sharer advertised no keys")
    senders = tuple(u for u in sharers if u in state.inbound_keys)
    if len(message.bundles) != len(senders):
        raise lie(Phase.SHARE_KEYS, "numbers of bundles and of sharers differ")
    return senders


def _open_bundle(
    party: Party, state: Shared, sender: int, sealed: bytes
) -> tuple[tuple[HeldShares, ...], Dealt | None] | None:
    """The shares of every step, malicious: and what proves them; None if either is not right."""
    associated = _bundle_associated(state.off1, sender, party.client)
    batch = party.batch
    size = 2 * batch.steps * shamir.SIZE
    try:
        plaintext = unseal(state.inbound_keys[sender], sealed, associated)
        held = _parse_shares(plaintext[:size], batch.steps)
        if not batch.malicious:
            return (held, None) if len(plaintext) == size else None
        proof = Dealt(evidence.leaves(_values(held)), plaintext[size:])
        root = evidence.root(proof.leaves)
        signed = evidence.statement(state.off1, sender, party.client, root)
        verify(batch.identity(sender), proof.signature, signed)
    except (CryptoError, DecodeError):
        return None
    return held, proof


def _parse_shares(plaintext: bytes, steps: int) -> tuple[HeldShares, ...]:
    starts = range(0, len(plaintext), shamir.SIZE)
    shares = [plaintext[start : start + shamir.SIZE] for start in starts]
    for share in shares:
        shamir.decode_element(share)
    if len(shares) != 2 * steps:
        raise DecodeError("wrong number of shares")
    pairs = zip(shares[::2], shares[1::2], strict=True)
    return tuple(HeldShares(KeyShare(a), SelfShare(b)) for a, b in pairs)


def lie(phase: Phase, message: str) -> RemoteProtocolError:
    """The server broke a rule."""
    return RemoteProtocolError(None, phase, message)


# Server ----------------------------------------------------------------------------------------

# Every X25519 result with a low-order point is zero, whatever the private key.
_PROBE = KeyPair.from_private_bytes(bytes(KEY_SIZE))


@dataclass(frozen=True, slots=True)
class CollectingKeys:
    """Round 0: advertisements by client, the bytes they came in, and all keys in them."""

    received: dict[int, Advertisement]
    sent: dict[int, bytes]
    keys: set[bytes]


@dataclass(frozen=True, slots=True)
class CollectingNonces:
    """Draw: what every member of C advertised, and the nonces."""

    advertised: Mapping[int, RingAdvertisement]
    sent: Mapping[int, bytes]
    received: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class CollectingBundles:
    """Round 1: what every member of U1 sent."""

    off1: bytes
    graph: Graph
    advertised: Mapping[int, Advertisement]
    received: dict[int, ShareBundles]


@dataclass(frozen=True, slots=True)
class Stock:
    """What the server keeps of a batch: its graph, public keys and commitments of U2."""

    off1: bytes
    graph: Graph
    advertised: Mapping[int, Advertisement]
    commitments: Mapping[int, tuple[bytes, ...]]

    @property
    def sharers(self) -> tuple[int, ...]:
        """U2, ascending."""
        return tuple(self.advertised)

    def commitment(self, client: int, key: int, kind: Kind) -> bytes:
        """What a client committed to for one of its seeds."""
        return self.commitments[client][2 * key + (kind is Kind.SELF_MASK)]


def receive_keys(
    batch: BatchParams, state: CollectingKeys, client: int, message: Advertisement, data: bytes
) -> CollectingKeys:
    """Check and record a client's keys (SPEC 6.1).

    Raises:
        RemoteProtocolError: a wrong number of keys, one that no peer could accept, or one that is
            not in canonical form.
    """
    phase = Phase.ADVERTISE_KEYS
    check_sender(client, batch.roster, state.received, phase)
    if len(message.mask_keys) != batch.steps:
        raise RemoteProtocolError(client, phase, "wrong number of mask keys")
    keys = (message.channel_key, *message.mask_keys)
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
) -> tuple[CollectingBundles | CollectingNonces, dict[int, Message]]:
    """Fix U1 and send everyone's keys to it; on the ring fix C (SPEC 6.1, 6.9).

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
    directory = KeyDirectory(bitmap, tuple(sent.values()))
    off1 = context.advertised(context.offline(batch), sent.items())
    advertised = {u: state.received[u] for u in members}
    graph = Graph(batch, members, off1)
    return CollectingBundles(off1, graph, advertised, {}), dict.fromkeys(members, directory)


def receive_nonce(
    batch: BatchParams, state: CollectingNonces, client: int, message: Nonce
) -> CollectingNonces:
    """Check and record a client's nonce (SPEC 6.9).

    Raises:
        RemoteProtocolError: it is not what the client committed to.
    """
    phase = Phase.DRAW_GRAPH
    check_sender(client, state.advertised, state.received, phase)
    found = context.nonce_commitment(context.offline(batch), client, message.nonce)
    if found != state.advertised[client].nonce_commitment:
        raise RemoteProtocolError(client, phase, "nonce is not what was committed to")
    state.received[client] = message.nonce
    return state


def end_nonces(
    batch: BatchParams, state: CollectingNonces
) -> tuple[CollectingBundles, dict[int, Message]]:
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
    graph = Graph(batch, tuple(nonces), off1)
    bitmap, listed = messages.encode_set(nonces, batch.roster), tuple(nonces.values())
    replies: dict[int, Message] = {
        u: RingDirectory(bitmap, listed, tuple(state.sent[v] for v in graph.neighbours(u)))
        for u in nonces
    }
    advertised = {u: state.advertised[u] for u in nonces}
    return CollectingBundles(off1, graph, advertised, {}), replies


def receive_bundles(
    batch: BatchParams, state: CollectingBundles, client: int, message: ShareBundles
) -> CollectingBundles:
    """Check and record a client's bundles (SPEC 6.2).

    Raises:
        RemoteProtocolError: wrong numbers or sizes, or commitments that were not advertised.
    """
    phase = Phase.SHARE_KEYS
    check_sender(client, state.advertised, state.received, phase)
    if len(message.bundles) != len(state.graph.neighbours(client)):
        raise RemoteProtocolError(client, phase, "wrong number of bundles")
    if any(len(bundle) != messages.bundle_size(batch) for bundle in message.bundles):
        raise RemoteProtocolError(client, phase, "bundle of wrong size")
    if len(message.commitments) != 2 * batch.steps:
        raise RemoteProtocolError(client, phase, "wrong number of commitments")
    if commit_all(message.commitments) != state.advertised[client].commitment:
        raise RemoteProtocolError(client, phase, "commitments are not those advertised")
    state.received[client] = message
    return state


def end_bundles(batch: BatchParams, state: CollectingBundles) -> tuple[Stock, dict[int, Message]]:
    """Fix U2 and route every bundle to its recipient (SPEC 6.2).

    Raises:
        NotEnoughSurvivors: |U2| below the threshold.
    """
    active = enough(batch, state.received, Phase.SHARE_KEYS)
    neighbours = {u: state.graph.neighbours(u) for u in active}
    sent = {u: dict(zip(neighbours[u], state.received[u].bundles, strict=True)) for u in active}
    sharers = messages.encode_set(active, batch.roster)
    replies: dict[int, Message] = {
        v: BundleDelivery(sharers, tuple(sent[u][v] for u in neighbours[v] if u in sent))
        for v in active
    }
    stock = Stock(
        state.off1,
        state.graph,
        {u: state.advertised[u] for u in active},
        {u: state.received[u].commitments for u in active},
    )
    return stock, replies


def left_out(reports: Mapping[int, frozenset[int]]) -> frozenset[int]:
    """Who stays out of later steps so that nobody left has an unopened bundle of another.

    A report does not prove who lies. The client in most conflicts goes first, so one that
    accuses everybody puts out itself (SPEC 6.2).

    Args:
        reports: client -> whose bundles it could not open.
    """
    conflicts = {frozenset({u, v}) for u, others in reports.items() for v in others}
    gone: set[int] = set()
    while conflicts:
        counts = Counter(u for pair in conflicts for u in sorted(pair))
        worst = min(counts, key=lambda u: (-counts[u], u))
        gone.add(worst)
        conflicts = {pair for pair in conflicts if worst not in pair}
    return frozenset(gone)


Group = tuple[int, ...] | Mapping[int, object] | frozenset[int]


def check_sender(client: int, allowed: Group, received: Group, phase: Phase) -> None:
    """Refuse who does not take part in a round or has already sent (SPEC 6).

    Raises:
        RemoteProtocolError: either.
    """
    if client not in allowed:
        raise RemoteProtocolError(client, phase, "not taking part in this round")
    if client in received:
        raise RemoteProtocolError(client, phase, "second message of this round")


def enough(batch: BatchParams, received: Group, phase: Phase) -> tuple[int, ...]:
    """The senders of a round in roster order.

    Raises:
        NotEnoughSurvivors: fewer than the threshold.
    """
    if len(received) < batch.threshold:
        raise NotEnoughSurvivors(phase, len(received), batch.threshold)
    return tuple(sorted(received))
