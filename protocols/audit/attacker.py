"""Everything that a server ever saw, and all the algebra that it can do with it.

The algebra: a masked input is x + self mask + signed pair masks (SPEC 4.3). A set of inputs opens
when every self mask is known and every pair mask is known or cancels within the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocols import context, masking, messages, pairs, signing
from protocols.client.states import Advertised, OwnSeeds, Prepared
from protocols.errors import CryptoError
from protocols.graph import share_points
from protocols.messages import (
    Advertisement,
    ChosenAdvertisement,
    KeyDirectory,
    MaskedInput,
    ShareBundles,
    StepRequest,
    UnmaskShares,
)
from protocols.params import BatchParams, Task
from protocols.primitives.keys import KeyPair
from protocols.primitives.packing import unpack
from protocols.seeds import Kind, SeedSlot


@dataclass(frozen=True, slots=True)
class Sent:
    """A masked input that left a client, and what the client was told about the step."""

    client: int
    key: int
    task: Task
    active: tuple[int, ...]
    request: StepRequest
    lost: frozenset[int]
    vectors: tuple[NDArray[np.uint32], ...] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Opened:
    """A sum that the attacker could compute.

    Attributes:
        members: the clients whose inputs are in it.
        totals: section name -> uint32, the sum mod p.
    """

    members: frozenset[int]
    totals: dict[str, NDArray[np.uint32]]


@dataclass(frozen=True, slots=True)
class View:
    """What one client was shown before it shared its seeds: the context and public mask keys.

    The keys are those of all members on the complete graph, of the neighbours on the others.
    `owners` are the clients whose shares it holds.
    """

    off1: bytes
    mask_keys: Mapping[int, tuple[bytes, ...]]
    owners: frozenset[int]


class ReferenceAttacker:
    """Collects what leaves the clients, and opens every sum that can be opened.

    Args:
        batch: public parameters.

    Attributes:
        given: (holder, key step, owner) -> kinds of shares that left. Two kinds are a breach: they
            open both masks of the owner.
        answers: (client, stage) -> different replies that left. Two replies are a breach of
            the replay protection (SPEC 6.7).
    """

    def __init__(self, batch: BatchParams) -> None:
        self._batch = batch
        self._off0 = context.offline(batch)
        self._points = share_points(batch.roster)
        self._views: dict[int, View] = {}
        self._commitments: dict[int, tuple[bytes, ...]] = {}
        self._sent: list[Sent] = []
        self._shares: dict[tuple[int, int, Kind], dict[int, bytes]] = {}
        self._seeds: dict[tuple[int, int, Kind], bytes] = {}
        self._pairs: dict[bytes, KeyPair] = {}
        self._tried: dict[tuple[int, int, Kind], int] = {}
        self.given: dict[tuple[int, int, int], set[Kind]] = {}
        self.answers: dict[tuple[int, str], set[bytes]] = {}

    # What it collects --------------------------------------------------------------------------

    def corrupt(self, client: int, state: object) -> None:
        """Learn everything that a corrupt client holds: its own seeds and its peers' shares."""
        if isinstance(state, Advertised):
            for key, own in enumerate(state.seeds):
                self._own(client, key, own)
        if isinstance(state, Prepared):
            for key, keys in state.unused.items():
                self._own(client, key, keys.seeds)
                for peer, held in keys.held.items():
                    self._learn(client, peer, key, Kind.MASK_KEY, held.mask_key.value)
                    self._learn(client, peer, key, Kind.SELF_MASK, held.self_mask.value)

    def answered(self, client: int, stage: str, reply: bytes) -> None:
        """Record that a reply left a client."""
        self.answers.setdefault((client, stage), set()).add(reply)

    def saw_directory(self, client: int, shown: KeyDirectory, sent: ShareBundles) -> None:
        """Record the directory that a client was shown, and the bundles that it sent for it."""
        members = messages.decode_set(shown.members, self._batch.roster)
        listed = dict(zip(members, shown.advertisements, strict=True))
        self.saw_keys(client, context.advertised(self._off0, listed.items()), listed, sent)

    def saw_keys(
        self, client: int, off1: bytes, listed: Mapping[int, bytes], sent: ShareBundles
    ) -> None:
        """Record the advertisements, its own included, that a client shared its seeds for."""
        keys, owners = {}, set(listed)
        if self._batch.graph != "complete":
            owners.discard(client)
        for u, data in listed.items():
            message = signing.unwrap(data, self._batch)[0]
            keys[u] = message.mask_keys if isinstance(message, Advertisement) else ()
            if isinstance(message, ChosenAdvertisement):
                chosen = messages.decode_set(message.chosen, self._batch.roster)
                owners -= set() if client in chosen else {u}
        self._views[client] = View(off1, keys, frozenset(owners))
        self._commitments[client] = sent.commitments

    def saw_input(self, client: int, request: StepRequest, task: Task, sent: MaskedInput) -> None:
        """Record a masked input."""
        parts = zip(task.sections, task.fields(self._batch.n), sent.sections, strict=True)
        vectors = tuple(unpack(data, f.bits, section.length) for section, f, data in parts)
        active = messages.decode_set(request.active, self._batch.roster)
        lost = self.lost(client, request)
        self._sent.append(Sent(client, sent.key, task, active, request, lost, vectors))

    def lost(self, client: int, request: StepRequest) -> frozenset[int]:
        """Return the peers that a client has lost in a step, as it was told."""
        found = pairs.decode(request.lost, self._batch.roster)
        return pairs.peers(found).get(client, frozenset())

    def saw_shares(
        self, client: int, request: StepRequest, survivors: Iterable[int], sent: UnmaskShares
    ) -> None:
        """Record the shares that a client sent, given the request and U3 that it was told."""
        alive = tuple(survivors)
        lost = self.lost(client, request)
        active = messages.decode_set(request.active, self._batch.roster)
        dropped = tuple(u for u in active if u not in alive)
        for kind, group, shares in (
            (Kind.SELF_MASK, alive, sent.self_shares),
            (Kind.MASK_KEY, dropped, sent.key_shares),
        ):
            owners = [v for v in group if v in self._views[client].owners and v not in lost]
            for peer, share in zip(owners, shares, strict=True):
                self._learn(client, peer, sent.key, kind, share)
                self.given.setdefault((client, sent.key, peer), set()).add(kind)

    # What it knows -----------------------------------------------------------------------------

    @property
    def breaches(self) -> list[str]:
        """Both kinds of share of one owner, and two answers at one stage, in words (SPEC 6.4)."""
        both = [
            f"client {holder} gave both shares of client {owner} in key step {key}"
            for (holder, key, owner), kinds in self.given.items()
            if len(kinds) > 1
        ]
        twice = [
            f"client {client} gave {len(replies)} different answers: {stage}"
            for (client, stage), replies in self.answers.items()
            if len(replies) > 1
        ]
        return both + twice

    def opened(self) -> list[Opened]:
        """Return every sum that can be computed now and that contains no smaller one."""
        self._rebuild()
        groups: dict[tuple[int, bytes], list[Sent]] = {}
        for sent in self._sent:
            groups.setdefault((sent.key, self._on(sent)), []).append(sent)
        return [
            self._sum(part, on)
            for (_, on), group in groups.items()
            for part in self._linked(group)
            if self._closed(part)
        ]

    def online(self, client: int, request: StepRequest, task: Task) -> bytes:
        """Return the online context of a client that was sent this request and task."""
        off1 = self._views[client].off1
        return context.online(
            off1, request.key, task, self._batch.n, request.active, lost=request.lost
        )

    def _own(self, client: int, key: int, seeds: OwnSeeds) -> None:
        self._seeds[client, key, Kind.SELF_MASK] = seeds.self_mask
        self._add_pair(client, key, seeds.mask_key)

    def _add_pair(self, client: int, key: int, seed: bytes) -> None:
        pair = masking.mask_key_pair(seed, client, key, self._off0)
        self._pairs[pair.public] = pair

    def _learn(self, holder: int, owner: int, key: int, kind: Kind, share: bytes) -> None:
        self._shares.setdefault((owner, key, kind), {})[self._points[holder]] = share

    def _rebuild(self) -> None:
        """Try every seed of which shares came in since it was tried last."""
        for slot, shares in self._shares.items():
            if len(shares) > self._tried.get(slot, self._batch.share_threshold - 1):
                self._tried[slot] = len(shares)
                self._try(slot, shares)

    def _try(self, slot: tuple[int, int, Kind], shares: Mapping[int, bytes]) -> None:
        owner, key, kind = slot
        if owner not in self._commitments:
            return
        commitment = self._commitments[owner][2 * key + (kind is Kind.SELF_MASK)]
        seeds = SeedSlot(self._off0, owner, key, kind)
        try:
            seed = seeds.recover(shares, self._batch.share_threshold, commitment)[0]
        except CryptoError:
            return
        if kind is Kind.MASK_KEY:
            self._add_pair(owner, key, seed)
        else:
            self._seeds[slot] = seed

    # The algebra -------------------------------------------------------------------------------

    def _on(self, sent: Sent) -> bytes:
        return self.online(sent.client, sent.request, sent.task)

    def _public(self, sent: Sent, client: int) -> bytes:
        """A client's mask key, as the sender of a masked input was told it."""
        return self._views[sent.client].mask_keys[client][sent.key]

    def _peers(self, sent: Sent) -> set[int]:
        """The active neighbours of a sender that it has not lost."""
        near = set(sent.active).intersection(self._views[sent.client].mask_keys)
        return near - {sent.client} - sent.lost

    def _hidden_peers(self, sent: Sent) -> set[int]:
        """Return the peers whose common mask with the sender is not known."""
        if self._public(sent, sent.client) in self._pairs:
            return set()
        return {v for v in self._peers(sent) if self._public(sent, v) not in self._pairs}

    def _linked(self, group: list[Sent]) -> list[list[Sent]]:
        """Return the parts of a group that unknown pair masks connect.

        An unknown mask cancels only in a sum over both its ends, so a part opens whole or not.
        """
        by_client = {sent.client: sent for sent in group}
        left, parts = set(by_client), []
        while left:
            part, todo = [], [left.pop()]
            while todo:
                sent = by_client[todo.pop()]
                part.append(sent)
                linked = self._hidden_peers(sent) & left
                left -= linked
                todo.extend(linked)
            parts.append(part)
        return parts

    def _closed(self, part: list[Sent]) -> bool:
        """Tell whether all unknown masks cancel within the part, and all self masks are known."""
        peers = {sent.client: self._peers(sent) for sent in part}
        return all(
            all(sent.client in peers.get(v, ()) for v in self._hidden_peers(sent))
            and (sent.client, sent.key, Kind.SELF_MASK) in self._seeds
            for sent in part
        )

    def _sum(self, part: list[Sent], on: bytes) -> Opened:
        task, n = part[0].task, self._batch.n
        columns = zip(*(sent.vectors for sent in part), strict=True)
        sums = [np.asarray(np.sum(column, axis=0, dtype=np.uint64)) for column in columns]
        total = masking.MaskedSum(task, n, sums)
        for sent in part:
            seed = self._seeds[sent.client, sent.key, Kind.SELF_MASK]
            total.add(masking.self_mask_key(seed, sent.client, on), -1)
            for peer in self._peers(sent) - self._hidden_peers(sent):
                total.add(self._pair_key(sent, peer, on), -masking.pair_sign(sent.client, peer))
        names = [section.name for section in task.sections]
        totals = dict(zip(names, total.reduced(), strict=True))
        return Opened(frozenset(sent.client for sent in part), totals)

    def _pair_key(self, sent: Sent, peer: int, on: bytes) -> bytes:
        own, theirs = self._public(sent, sent.client), self._public(sent, peer)
        if own in self._pairs:
            return masking.pair_mask_key(self._pairs[own], sent.client, peer, theirs, on)
        return masking.pair_mask_key(self._pairs[theirs], peer, sent.client, own, on)
