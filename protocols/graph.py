"""Which clients mask with each other, and which hold whose shares (SPEC 1.4).

The complete graph is the default and is cheap enough up to about 100 clients. The ring below
(`k-regular`) is for the semi-honest model only (SPEC 8.7), the graph that clients choose for the
malicious one (SPEC 8.8). All other modules know neighbours and holders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from protocols.errors import ConfigError, RemoteProtocolError
from protocols.messages import ChosenAdvertisement, decode_set
from protocols.pairs import Pairs, peers
from protocols.params import BatchParams, Ring
from protocols.phases import Phase
from protocols.primitives.keys import VERSION, frame, u64

Clients = tuple[int, ...]


def share_points(roster: Clients) -> dict[int, int]:
    """Return client -> Shamir x: its index in the roster + 1 (SPEC 3.6).

    The index in U1 would depend on who dropped out, and parties that disagree about that would
    interpolate at different points. x = 0 is the secret itself.
    """
    return {client: index + 1 for index, client in enumerate(roster)}


def least_on_ring(batch: BatchParams) -> int:
    """Return the smallest |U1| with which every client has τ neighbours (SPEC 6.9)."""
    return max(batch.threshold, batch.share_threshold + 1)


def complete(client: int, members: tuple[int, ...]) -> tuple[int, ...]:
    """Return all members but the client itself, in ascending order: the complete graph."""
    return tuple(peer for peer in members if peer != client)


def choose(client: int, roster: Clients, degree: int, seed: bytes) -> Clients:
    """Return the clients that hold a client's shares on the chosen graph, ascending (SPEC 1.4).

    Args:
        client: who chooses; it is not among them.
        roster: all clients.
        degree: k, how many.
        seed: 32 fresh secret bytes. Whoever knew it before the list is sent could surround the
            client.
    """
    start = hashlib.sha256(frame(VERSION, b"choice", seed))
    others = complete(client, roster)
    return tuple(sorted(sorted(others, key=_hashed(start))[:degree]))


def choices(batch: BatchParams, client: int, message: ChosenAdvertisement) -> Clients:
    """Return whom a client chose, ascending.

    Raises:
        DecodeError: the list is no bitmap over the roster.
        RemoteProtocolError: it does not name k others.
    """
    chosen = decode_set(message.chosen, batch.roster)
    if batch.chosen is None or len(chosen) != batch.chosen.degree or client in chosen:
        raise RemoteProtocolError(
            client, Phase.ADVERTISE_KEYS, "list of wrong length, or of itself"
        )
    return chosen


def neighbourhood(batch: BatchParams, client: int, members: Clients, seed: bytes) -> Clients:
    """Return a client's neighbours on the complete graph or the ring, ascending.

    Args:
        batch: says which graph.
        client: a member.
        members: U1, ascending.
        seed: off1, which decides the order of a ring.
    """
    if batch.ring is None:
        return complete(client, members)
    return ring_neighbours(client, ring_order(members, seed), _degree(batch.ring, len(members)))


@dataclass(frozen=True, slots=True)
class Graph:
    """All neighbourhoods of a batch, for the server. Sparse ones keep n * k client ids in memory.

    Attributes:
        members: U1, ascending.
        needed: τ, how many holders everybody needs.
        near: client -> who holds its shares, itself aside; None is the complete graph.
        owners: client -> whose shares it holds, itself aside; the same as `near` but for the
            chosen graph.
        lost: client -> peers that it lost (SPEC 6.2).
    """

    members: Clients
    needed: int
    near: Mapping[int, Clients] | None
    owners: Mapping[int, Clients] | None
    lost: Mapping[int, frozenset[int]]

    @classmethod
    def of(cls, batch: BatchParams, members: Clients, seed: bytes) -> Graph:
        """Return the complete graph or the ring of a batch.

        Args:
            batch: says which graph.
            members: U1, ascending.
            seed: off1, which decides the order of a ring.
        """
        near = None
        if batch.ring is not None:
            order, k = ring_order(members, seed), _degree(batch.ring, len(members))
            near = {u: _around(order, place, k) for place, u in enumerate(order)}
        return cls(members, batch.share_threshold, near, near, {})

    @classmethod
    def of_choices(cls, batch: BatchParams, lists: Mapping[int, Clients]) -> Graph:
        """Return the chosen graph of a batch.

        Args:
            batch: public parameters.
            lists: client of U1, ascending -> the clients that it chose.
        """
        near = {u: tuple(v for v in chosen if v in lists) for u, chosen in lists.items()}
        owners: dict[int, list[int]] = {u: [] for u in lists}
        for u, chosen in near.items():
            for v in chosen:
                owners[v].append(u)
        held = {v: tuple(choosers) for v, choosers in owners.items()}
        return cls(tuple(lists), batch.share_threshold, near, held, {})

    def without(self, pairs: Pairs) -> Graph:
        """Return the graph in which the two ends of every pair have lost each other (SPEC 6.2)."""
        return replace(self, lost=peers(pairs))

    def neighbours(self, client: int) -> Clients:
        """Return the clients that `client` masks with, ascending."""
        if self.near is None or self.owners is None:
            return self._kept(client, complete(client, self.members))
        near, owners = self.near[client], self.owners[client]
        both = near if near is owners else tuple(sorted({*near, *owners}))
        return self._kept(client, both)

    def recipients(self, client: int) -> Clients:
        """Return the clients that `client` sends a bundle, ascending: its holders but itself."""
        near = complete(client, self.members) if self.near is None else self.near[client]
        return self._kept(client, near)

    def senders(self, client: int) -> Clients:
        """Return the clients that send `client` a bundle, ascending."""
        near = complete(client, self.members) if self.owners is None else self.owners[client]
        return self._kept(client, near)

    def holders(self, client: int, group: Clients) -> Clients:
        """Return the members of `group` that hold shares of `client`, ascending as `group` is.

        On the complete graph the client is one of them (SPEC 1.4).
        """
        if self.near is None:
            return self._kept(client, group)
        return tuple(sorted(frozenset(self.recipients(client)).intersection(group)))

    def held(self, client: int, group: Clients) -> Clients:
        """Return the members of `group` of which `client` holds shares, ascending as `group` is."""
        if self.owners is None:
            return self._kept(client, group)
        return tuple(sorted(frozenset(self.senders(client)).intersection(group)))

    def weakest(self, clients: Collection[int], present: frozenset[int]) -> tuple[int, int | None]:
        """Return the smallest number of present holders among some clients, and whose number it is.

        On the complete graph all clients that lost nobody have the same holders. The client is
        None if they have the smallest number.
        """
        if self.near is not None:
            return min((len(present.intersection(self.recipients(u))), u) for u in clients)
        lost = ((len(self.lost[u] & present), u) for u in clients if u in self.lost)
        most, client = max(lost, default=(0, None), key=lambda found: found[0])
        return len(present) - most, client if most else None

    def stable(self, members: Clients) -> Clients:
        """Return the members without those that have too few holders among the rest (SPEC 6.3).

        Whoever leaves can put another one below the threshold. The order does not matter: this is
        the largest set in which everybody has enough. The time is linear in the pairs that lost
        each other, or in the edges of a sparse graph. On the complete graph nobody that lost nobody
        leaves: if all are too few, the threshold decides.
        """
        if self.near is None:
            return self._stable_in_complete(members)
        left = set(members)
        counts = {u: len(left.intersection(self.recipients(u))) for u in members}
        todo = [u for u, count in counts.items() if count < self.needed]
        while todo:
            client = todo.pop()
            left.remove(client)
            for peer in left.intersection(self.senders(client)):
                counts[peer] -= 1
                if counts[peer] == self.needed - 1:
                    todo.append(peer)
        return tuple(sorted(left))

    def _stable_in_complete(self, members: Clients) -> Clients:
        """On the complete graph, take out who lost most peers, until that is few enough.

        Everybody has the same number of holders, less the peers that it lost. So if the client
        that lost most has enough, all have. Numbers only fall: each is looked up in its list
        of clients, from the highest list down, and old entries are skipped.
        """
        left = set(members)
        counts = {u: len(self.lost[u] & left) for u in members if u in self.lost}
        lists: list[list[int]] = [[] for _ in range(max(counts.values(), default=0) + 1)]
        for client, count in counts.items():
            lists[count].append(client)
        for count in range(len(lists) - 1, 0, -1):
            while lists[count] and len(left) - count < self.needed:
                client = lists[count].pop()
                if client not in left or counts[client] != count:
                    continue
                left.remove(client)
                for peer in self.lost[client] & left:
                    counts[peer] -= 1
                    lists[counts[peer]].append(peer)
        return tuple(sorted(left))

    def _kept(self, client: int, group: Clients) -> Clients:
        """Return a group without the peers that a client lost."""
        lost = self.lost.get(client)
        return group if lost is None else tuple(u for u in group if u not in lost)


# The ring: neighbourhoods ----------------------------------------------------------------------


def ring_order(members: Iterable[int], seed: bytes) -> tuple[int, ...]:
    """Return the members in a random order that everybody can compute from a public seed.

    Args:
        members: client ids, in any order.
        seed: off1. It is public and no single party chooses it: it hashes nonces that all clients
            had committed to before they saw a key (SPEC 3.2, 6.9). Whoever chose the order could
            surround a client with colluders.

    Returns:
        The members in the order of their hashes under the seed; uniform if the hash is random.
    """
    return tuple(sorted(members, key=_hashed(hashlib.sha256(frame(VERSION, b"ring", seed)))))


def _hashed(start: hashlib._Hash) -> Callable[[int], bytes]:
    """Return a function from a client to the hash of `start` and it; the start is hashed once."""

    def place(client: int) -> bytes:
        state = start.copy()
        state.update(frame(u64(client)))
        return state.digest()

    return place


def ring_neighbours(client: int, order: tuple[int, ...], k: int) -> tuple[int, ...]:
    """Return a client's neighbours in the k-regular Harary graph, ascending.

    Args:
        client: the client whose neighbours are wanted.
        order: result of `ring_order`, the same for all clients.
        k: even; each client is joined to the k/2 members before and after it, around the ring.
            len(order) - 1 stands for the complete graph and may be odd.

    Raises:
        ConfigError: the client is not on the ring, or it has no k-regular neighbourhood.
    """
    n = len(order)
    if client not in order:
        raise ConfigError(f"client {client} is not on the ring")
    if k != n - 1 and (not 1 < k < n or k % 2):
        raise ConfigError(f"a ring of {n} clients has no neighbourhoods of {k}")
    return _around(order, order.index(client), k)


def _around(order: Clients, position: int, k: int) -> Clients:
    n = len(order)
    if k == n - 1:
        return complete(order[position], tuple(sorted(order)))
    steps = (step for distance in range(1, k // 2 + 1) for step in (distance, -distance))
    return tuple(sorted(order[(position + step) % n] for step in steps))


def _degree(ring: Ring, members: int) -> int:
    """Return k, or the number of all others if there are fewer (SPEC 1.4)."""
    return min(ring.degree, members - 1)
