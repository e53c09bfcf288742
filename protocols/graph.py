"""Who masks with whom and who holds whose shares (SPEC 1.4).

Sessions use `complete`. The ring below is planned: its parameters and neighbourhoods can be
computed, no session takes it yet.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from protocols.context import u64
from protocols.errors import ConfigError
from protocols.keys import VERSION, frame
from protocols.params import MAX_CLIENTS, MIN_CLIENTS

MAX_SECURITY = 256

_NEGLIGIBLE = 1e-18  # of a sum of falling terms: where it ends
_ROUNDING = 1e-9  # 0.1 * 30 is a little more than 3: not a reason to count a fourth client


def complete(client: int, members: tuple[int, ...]) -> tuple[int, ...]:
    """Neighbours in the complete graph: every member but the client itself, in ascending order.

    This is the only graph of this version. Sparse graphs replace this one function; everything
    else speaks of neighbours.
    """
    return tuple(peer for peer in members if peer != client)


# The ring: neighbourhoods ----------------------------------------------------------------------


def ring_order(members: Iterable[int], seed: bytes) -> tuple[int, ...]:
    """A permutation of the members that everybody computes from a public seed.

    Args:
        members: client ids, in any order.
        seed: public, and chosen by no single party: a hash over all signed keys and over nonces
            that all clients had committed to before they saw any key.

    Returns:
        The members in the order of their hashes under the seed; uniform if the hash is random.
    """

    def place(client: int) -> bytes:
        return hashlib.sha256(frame(VERSION, b"ring", seed, u64(client))).digest()

    return tuple(sorted(members, key=place))


def ring_neighbours(client: int, order: tuple[int, ...], k: int) -> tuple[int, ...]:
    """Neighbours in the k-regular Harary graph, in ascending order; not used by sessions yet.

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
    if k == n - 1:
        return complete(client, tuple(sorted(order)))
    if not 1 < k < n or k % 2:
        raise ConfigError(f"a ring of {n} clients has no neighbourhoods of {k}")
    position = order.index(client)
    steps = (step for distance in range(1, k // 2 + 1) for step in (distance, -distance))
    return tuple(sorted(order[(position + step) % n] for step in steps))


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
    """Smallest degree k, then smallest threshold t, of a safe ring: planned parameters only.

    Sessions use the complete graph; nothing takes these values yet. With a random order the
    numbers of corrupt and of silent neighbours are hypergeometric. Conditions, each a union
    bound over clients and steps:
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
        steps: steps that one graph serves.

    Returns:
        k even, or n - 1.

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
        t = -(-(k + exposed) // 2) if equivocating else exposed
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
