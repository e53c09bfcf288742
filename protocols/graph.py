"""Which clients mask with each other, and which hold whose shares (SPEC 1.4).

`complete` is the default and is cheap enough up to about 100 clients. `k-regular` is the ring
below, for the semi-honest model only (SPEC 8.7). All other modules speak of neighbours and holders.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from protocols.context import u64
from protocols.errors import ConfigError
from protocols.params import MAX_CLIENTS, MIN_CLIENTS, BatchParams, Ring
from protocols.primitives.keys import VERSION, frame

MAX_SECURITY = 256

Clients = tuple[int, ...]

_NEGLIGIBLE = 1e-18  # of a sum of falling terms: where it ends
_ROUNDING = 1e-9  # 0.1 * 30 is a little more than 3: not a reason to count a fourth client


def share_points(roster: Clients) -> dict[int, int]:
    """Return client -> Shamir x: roster index + 1, whoever is missing from U1 (SPEC 3.6)."""
    return {client: index + 1 for index, client in enumerate(roster)}


def least_on_ring(batch: BatchParams) -> int:
    """Return the size of the smallest U1 in which all have enough neighbours (SPEC 6.9)."""
    return max(batch.threshold, batch.share_threshold + 1)


def complete(client: int, members: tuple[int, ...]) -> tuple[int, ...]:
    """Return all members but the client itself, in ascending order: the complete graph."""
    return tuple(peer for peer in members if peer != client)


def neighbourhood(batch: BatchParams, client: int, members: Clients, seed: bytes) -> Clients:
    """Return a client's neighbours in a batch, ascending.

    Args:
        batch: says which graph.
        client: a member.
        members: U1, ascending.
        seed: off1, which decides the order of a ring.
    """
    if batch.ring is None:
        return complete(client, members)
    return ring_neighbours(client, ring_order(members, seed), _degree(batch.ring, len(members)))


class Graph:
    """All neighbourhoods of a batch, for the server; a ring takes memory of n * k.

    Args:
        batch: says which graph.
        members: U1, ascending.
        seed: off1, which decides the order of a ring.
    """

    def __init__(self, batch: BatchParams, members: Clients, seed: bytes) -> None:
        self._members = members
        self._needed = batch.share_threshold
        self._near: Mapping[int, Clients] | None = None
        if batch.ring is not None:
            order, k = ring_order(members, seed), _degree(batch.ring, len(members))
            self._near = {u: _around(order, place, k) for place, u in enumerate(order)}

    def neighbours(self, client: int) -> Clients:
        """Return the clients that mask with a client, ascending."""
        return complete(client, self._members) if self._near is None else self._near[client]

    def held(self, client: int, group: Clients) -> Clients:
        """Return the members of `group` with which `client` exchanges shares.

        The relation is symmetric (SPEC 1.4): the neighbours, on the complete graph also the client
        itself. `group` is ascending.
        """
        if self._near is None:
            return group
        return tuple(sorted(frozenset(self._near[client]).intersection(group)))

    def weakest(self, clients: Collection[int], present: frozenset[int]) -> tuple[int, int | None]:
        """Return the smallest number of present holders that a client has, and that client.

        The client is None on the complete graph, where all clients have the same holders.
        """
        if self._near is None:
            return len(present), None
        return min((len(present.intersection(self._near[u])), u) for u in clients)

    def stable(self, members: Clients) -> Clients:
        """Return the members without those that have too few holders among the rest (SPEC 6.3).

        On the complete graph all have the same number of holders; the threshold alone decides.
        """
        if self._near is None:
            return members
        left = set(members)
        todo = list(members)
        while todo:
            client = todo.pop()
            near = left.intersection(self._near[client])
            if client in left and len(near) < self._needed:
                left.remove(client)
                todo += near
        return tuple(sorted(left))


# The ring: neighbourhoods ----------------------------------------------------------------------


def ring_order(members: Iterable[int], seed: bytes) -> tuple[int, ...]:
    """Return a permutation of the members that everybody computes from a public seed.

    Args:
        members: client ids, in any order.
        seed: public, and chosen by no single party: off1, a hash over nonces that all clients had
            committed to before they saw any key (SPEC 3.2, 6.9).

    Returns:
        The members in the order of their hashes under the seed; uniform if the hash is random.
    """
    start = hashlib.sha256(frame(VERSION, b"ring", seed))

    def place(client: int) -> bytes:
        state = start.copy()
        state.update(frame(u64(client)))
        return state.digest()

    return tuple(sorted(members, key=place))


def ring_neighbours(client: int, order: tuple[int, ...], k: int) -> tuple[int, ...]:
    """Return a client's neighbours in the k-regular Harary graph, in ascending order.

    Args:
        client: whose neighbours.
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


# The ring: parameters --------------------------------------------------------------------------


class RingModel(enum.StrEnum):
    """What the server may do while the ring still protects.

    There is no member for a malicious server, and must not be: one that chooses who drops out
    cuts any arc off the ring with k lies, whatever k and t are. Such a model needs the complete
    graph, or neighbours that clients draw themselves.
    """

    SEMI_HONEST = "semi-honest"
    EQUIVOCATING = "equivocating"  # tells different clients different survivor sets


@dataclass(frozen=True, slots=True)
class RingParameters:
    """Degree and threshold of the ring, and how likely each of three things goes wrong.

    Attributes:
        k: neighbours of every client.
        t: shares of k that rebuild a secret.
        corrupt, dropouts: clients that were counted as such.
        log2_exposed: E1, some honest client has enough corrupt neighbours to open its input.
        log2_split: E2, the honest clients that stayed fall apart into groups with sums of their
            own.
        log2_stuck: E3, some client has fewer than t live neighbours; the step is lost.
    """

    k: int
    t: int
    corrupt: int
    dropouts: int
    log2_exposed: float
    log2_split: float
    log2_stuck: float

    @property
    def ring(self) -> Ring:
        """What sessions take."""
        return Ring(self.k, self.t)


def ring_parameters(
    n: int,
    *,
    corrupt: float,
    dropouts: float,
    sigma: int = 40,
    eta: int = 30,
    model: RingModel = RingModel.SEMI_HONEST,
    steps: int = 1,
) -> RingParameters:
    """Smallest degree k, then smallest threshold t, of a safe ring.

    With a random order the numbers of corrupt and of silent neighbours are hypergeometric. t is
    at least 2 (see `Ring`). Conditions, each a union bound over clients and steps:
        E1  no honest client has t corrupt neighbours; against an equivocating server none has
            2t - k, since every honest neighbour may be made to answer either kind of share
        E2  C(n,2) * prod_{i<k} (m-i)/(n-i) bounds a cut of the ring by m corrupt or silent ones
        E3  every client has t live neighbours

    Args:
        n: clients, 3..16384.
        corrupt: fraction that may collude with the server, 0 <= corrupt < 1; counts round up.
        dropouts: fraction that may drop out, chosen by chance and not by the server.
        sigma: E1 and E2 fail with probability at most 2^-sigma each.
        eta: E3 fails with probability at most 2^-eta.
        model: see `RingModel`; there is none for a malicious server.
        steps: M of the batch, the steps that one graph serves.

    Returns:
        k even, or n - 1. They hold for n clients on the ring (SPEC 8.7).

    Raises:
        ConfigError: an argument is out of range, or not even the complete graph is enough.

    Source: Bell et al., Secure Single-Server Aggregation with (Poly)Logarithmic Overhead,
        CCS 2020, section 3.
    """
    _check_fractions(corrupt, dropouts)
    _check_numbers(n, sigma, eta, steps)
    bad, quiet = (math.ceil(fraction * n - _ROUNDING) for fraction in (corrupt, dropouts))
    union = math.log2(n) + math.log2(steps)
    exposed = quiets = 1  # corrupt and silent neighbours that nobody has; they grow with k
    for k in (*range(2, n - 1, 2), n - 1):
        while union + _log2_tail(n - 1, bad, k, exposed) > -sigma:
            exposed += 1
        while union + _log2_tail(n - 1, quiet, k, quiets) > -eta:
            quiets += 1
        equivocating = model is RingModel.EQUIVOCATING
        t = -(-(k + exposed) // 2) if equivocating else max(exposed, 2)
        split = math.log2(steps) + _log2_split(n, bad + quiet, k)
        if t <= k + 1 - quiets and split <= -sigma:
            reached = 2 * t - k if equivocating else t
            log2_exposed = union + _log2_tail(n - 1, bad, k, reached)
            log2_stuck = union + _log2_tail(n - 1, quiet, k, k + 1 - t)
            return RingParameters(k, t, bad, quiet, log2_exposed, split, log2_stuck)
    raise ConfigError(
        f"no ring of {n} clients, {bad} corrupt and {quiet} dropping out, is safe: {model} server"
    )


def _check_fractions(corrupt: float, dropouts: float) -> None:
    for name, fraction in (("corrupt", corrupt), ("dropouts", dropouts)):
        if not 0 <= fraction < 1:
            raise ConfigError(f"{name}: fraction {fraction} is outside 0..1")
    if corrupt + dropouts >= 1:
        raise ConfigError("with so many corrupt and dropping clients nobody is left to protect")


def _check_numbers(n: int, sigma: int, eta: int, steps: int) -> None:
    if not MIN_CLIENTS <= n <= MAX_CLIENTS:
        raise ConfigError(f"clients: {n} is outside {MIN_CLIENTS}..{MAX_CLIENTS}")
    for name, security in (("sigma", sigma), ("eta", eta)):
        if not 1 <= security <= MAX_SECURITY:
            raise ConfigError(f"{name}: {security} is outside 1..{MAX_SECURITY}")
    if steps < 1:
        raise ConfigError("steps: a graph serves at least one")


def _log2_tail(population: int, marked: int, draws: int, least: int) -> float:
    """log2 P[at least `least` of the draws are marked]; 0 up to the mean, where nobody needs it."""
    low, high = max(least, draws - (population - marked), 0), min(draws, marked)
    if low > high:
        return -math.inf
    if low * population <= draws * marked:
        return 0.0
    term = total = 1.0
    for j in range(low, high):
        odds = (marked - j) * (draws - j)
        term *= odds / ((j + 1) * (population - marked - draws + j + 1))
        total += term
        if term < _NEGLIGIBLE * total:
            break
    first = _log_choose(marked, low) + _log_choose(population - marked, draws - low)
    return (first - _log_choose(population, draws) + math.log(total)) / math.log(2)


def _log2_split(n: int, gone: int, k: int) -> float:
    """log2 of the bound of E2; the complete graph cannot be cut."""
    if k > gone or k == n - 1:
        return -math.inf
    cut = _log_choose(n - k, gone - k) - _log_choose(n, gone)
    return (_log_choose(n, 2) + cut) / math.log(2)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
