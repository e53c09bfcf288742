"""Which clients mask with each other, and which hold whose shares (SPEC 1.4).

The complete graph is the default and is cheap enough up to about 100 clients. The ring below
(`k-regular`) is for the semi-honest model only (SPEC 8.7). All other modules know neighbours and
holders, but not which graph they come from.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from protocols.errors import ConfigError
from protocols.params import MAX_CLIENTS, MIN_CLIENTS, BatchParams, Ring
from protocols.primitives.keys import VERSION, frame, u64

MAX_SECURITY = 256

Clients = tuple[int, ...]

_NEGLIGIBLE = 1e-18  # terms fall from here on; below this share of the sum a double ignores them
_ROUNDING = 1e-9  # in doubles 0.1 * 30 exceeds 3; that must not count a fourth client


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
    """All neighbourhoods of a batch, for the server. A ring keeps n * k client ids in memory.

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
        """Return the clients that `client` masks with, ascending."""
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
        """Return the smallest number of present holders among some clients, and whose number it is.

        On the complete graph all clients have the same holders, and the client is None.
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
        # Leaving one client out can put a neighbour below the threshold: look at those again.
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
    """Return the members in a random order that everybody can compute from a public seed.

    Args:
        members: client ids, in any order.
        seed: off1. It is public and no single party chooses it: it hashes nonces that all clients
            had committed to before they saw a key (SPEC 3.2, 6.9). Whoever chose the order could
            surround a client with colluders.

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


# The ring: parameters --------------------------------------------------------------------------


class RingModel(enum.StrEnum):
    """What the server may do while the ring still protects its clients.

    There must be no member for a malicious server. A server that chooses who drops out cuts any
    arc off the ring with k lies, k/2 at either end, whatever k and t are, and learns the arc's sum
    (SPEC 8.7). Such a model needs the complete graph, or neighbours that clients draw themselves.
    """

    SEMI_HONEST = "semi-honest"
    EQUIVOCATING = "equivocating"  # tells different clients different survivor sets


@dataclass(frozen=True, slots=True)
class RingParameters:
    """Degree and threshold of the ring, and bounds on the probabilities of three failures.

    Attributes:
        k: neighbours of every client.
        t: how many of k shares rebuild a secret.
        corrupt, dropouts: numbers of clients that were counted as such.
        log2_exposed: log2 P[E1], some honest client has enough corrupt neighbours to open its
            input.
        log2_split: log2 P[E2], the honest clients that stay fall apart into groups, and the server
            learns the sum of each group.
        log2_stuck: log2 P[E3], some client has fewer than t live neighbours; the step is lost.
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
        """The two numbers that sessions take."""
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
    """Return the smallest degree k, and for it the smallest threshold t, of a safe ring.

    In a random order the numbers of corrupt and of silent neighbours are hypergeometric. t is at
    least 2 (see `Ring`). Three conditions must hold, by union bounds over clients and steps:
        E1  No honest client has t corrupt neighbours. Against an equivocating server none has
            2t - k: that server may ask every honest neighbour for either kind of share, so k
            neighbours, c of them corrupt, give k + c shares; both seeds together need 2t.
        E2  The ring is not cut. A cut needs k of the m corrupt or silent clients in two gaps, with
            probability at most C(n,2) * prod_{i<k} (m-i)/(n-i).
        E3  Every client has t live neighbours.

    Args:
        n: clients, 3..16384.
        corrupt: fraction of the clients that may collude with the server, 0 <= corrupt < 1. The
            number of clients is rounded up.
        dropouts: fraction that may drop out, by chance and not by the server's choice.
        sigma: E1 and E2 fail with probability at most 2^-sigma each.
        eta: E3 fails with probability at most 2^-eta.
        model: what the server may do.
        steps: M of the batch; one graph serves all its steps.

    Returns:
        The parameters, k even or n - 1. They hold for n clients on the ring (SPEC 8.7).

    Raises:
        ConfigError: an argument is out of range, or not even the complete graph is enough.

    Source: Bell et al., Secure Single-Server Aggregation with (Poly)Logarithmic Overhead,
        CCS 2020, section 3.
    """
    _check_fractions(corrupt, dropouts)
    _check_numbers(n, sigma, eta, steps)
    bad, quiet = (math.ceil(fraction * n - _ROUNDING) for fraction in (corrupt, dropouts))
    union = math.log2(n) + math.log2(steps)
    # So many corrupt or silent neighbours no client has, but for 2^-sigma and 2^-eta. Both numbers
    # grow with k, so the search over k never has to start again.
    exposed = quiets = 1
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
    """Return log2 P[at least `least` of the draws are marked], a hypergeometric tail.

    Up to the mean it returns 0, which is no condition's value. Above the mean the terms fall.
    """
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
    """Return log2 of the bound of E2; the complete graph cannot be cut."""
    if k > gone or k == n - 1:
        return -math.inf
    cut = _log_choose(n - k, gone - k) - _log_choose(n, gone)
    return (_log_choose(n, 2) + cut) / math.log(2)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
