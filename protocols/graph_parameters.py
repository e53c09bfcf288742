"""How many neighbours are enough: parameters of sparse graphs, from tail bounds (SPEC 8.7, 8.8)."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from functools import lru_cache

from protocols.errors import ConfigError
from protocols.params import MAX_CLIENTS, MIN_CLIENTS, Chosen, Ring

MAX_SECURITY = 256

_NEGLIGIBLE = 1e-18  # terms fall from here on; below this share of the sum a double ignores them
_ROUNDING = 1e-9  # in doubles 0.1 * 30 exceeds 3; that must not count a fourth client


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

    @property
    def log2_unsafe(self) -> float:
        """log2 of a bound on the probability that the server learns more than the sum."""
        return _log2_sum(self.log2_exposed, self.log2_split)


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
    # No client has this many corrupt neighbours, except with probability 2^-sigma, and none this
    # many silent ones, except with probability 2^-eta.
    # Both numbers grow with k, so the search over k never has to start again.
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


@dataclass(frozen=True, slots=True)
class ChosenParameters:
    """k and τ of the chosen graph, and bounds on the probabilities of three failures (SPEC 8.8).

    Attributes:
        k: how many others every client chooses.
        t: how many of k shares rebuild a secret.
        corrupt, dropouts: numbers of clients that were counted as such.
        log2_split: log2 P[a part of the clients can be summed alone, or an input can be opened].
        log2_stuck: log2 P[some client has fewer than t live holders]; the step is lost.
        log2_flooded: log2 P[some honest client is chosen by more than 3k, all corrupt ones among
            them]; it is out of the batch.
    """

    k: int
    t: int
    corrupt: int
    dropouts: int
    log2_split: float
    log2_stuck: float
    log2_flooded: float

    @property
    def chosen(self) -> Chosen:
        """The two numbers that sessions take."""
        return Chosen(self.k, self.t)

    @property
    def log2_unsafe(self) -> float:
        """log2 of a bound on the probability that the server learns more than the sum."""
        return self.log2_split


def chosen_parameters(
    n: int,
    *,
    corrupt: float = 0.05,
    dropouts: float = 0.05,
    sigma: int = 40,
    eta: int = 30,
    steps: int = 1,
) -> ChosenParameters:
    """Return the smallest k, and for it the smallest τ, of a safe graph that clients choose.

    Args:
        n: clients of the roster, 3..16384.
        corrupt: fraction of them that may collude with the server, below 1/3; the number is rounded
            up. All of them may choose the same client.
        dropouts: fraction that may drop out by chance. A server may call dropped whom it likes.
        sigma: a part can be summed alone with probability at most 2^-sigma a batch.
        eta: each of the two other failures has probability at most 2^-eta a batch.
        steps: M of the batch.

    Raises:
        ConfigError: an argument is out of range, or no such graph is safe.

    Source: Bell et al., Secure Single-Server Aggregation with (Poly)Logarithmic Overhead,
        CCS 2020, section 4; the conditions are those of SPEC 8.8.
    """
    _check_fractions(corrupt, dropouts)
    _check_numbers(n, sigma, eta, steps)
    if corrupt >= 1 / 3 - _ROUNDING:
        raise ConfigError("a third corrupt has no sparse graph: use the complete graph (SPEC 8.8)")
    bad, quiet = (math.ceil(fraction * n - _ROUNDING) for fraction in (corrupt, dropouts))
    union = math.log2(n) + math.log2(steps)
    quiets = 1
    for k in range(2, n):
        while union + _log2_tail(n - 1, quiet, k, quiets) > -eta:
            quiets += 1
        t, flooded = k + 1 - quiets, _log2_flooded(n, bad, k)
        if 2 * t <= k or flooded > -eta or log2_split(n, bad, k, t) > -sigma:
            continue
        t = _smallest_threshold(n, bad, k, sigma)
        stuck = union + _log2_tail(n - 1, quiet, k, k + 1 - t)
        split = log2_split(n, bad, k, t)
        return ChosenParameters(k, t, bad, quiet, split, stuck, flooded)
    raise ConfigError(
        f"no sparse graph of {n} clients bears {bad} corrupt and {quiet} silent: use the complete "
        "graph (SPEC 8.8)"
    )


def _smallest_threshold(n: int, corrupt: int, k: int, sigma: int) -> int:
    """Return the smallest τ that is safe, if k is; it loses the fewest steps."""
    every = range(k // 2 + 1, k + 1)  # the bound falls as τ grows
    return next(t for t in every if log2_split(n, corrupt, k, t) <= -sigma)


@lru_cache(maxsize=64)
def log2_split(n: int, corrupt: int, k: int, t: int) -> float:
    """Return log2 of the bound on P[not (P)] of SPEC 1.6, by the union over all sets of SPEC 8.8.

    Args:
        n: clients of the roster.
        corrupt: n_C, how many of them are.
        k: how many others each client chooses.
        t: τ.
    """
    honest, total = n - corrupt, -math.inf
    for size in range(1, honest // 2 + 1):
        marked = min(size - 1 + corrupt, n - 1)
        all_inside = size * _log2_tail(n - 1, marked, k, 2 * t - k)
        total = _log2_sum(total, _log_choose(honest, size) / math.log(2) + all_inside)
        if total > 0:
            return 0.0
    return total


def _log2_flooded(n: int, corrupt: int, k: int) -> float:
    """Return log2 of a bound on P[more than 3k choose some honest client]."""
    honest, chance = n - corrupt, k / (n - 1)
    least = 3 * k - corrupt + 1  # honest clients that choose one, each alone
    if least > honest:
        return -math.inf
    if least <= honest * chance:
        return 0.0
    # Above the mean the terms of a binomial tail fall: the first one, and the ratio after it.
    term = _log_choose(honest, least) + least * math.log(chance)
    term += (honest - least) * math.log1p(-chance) if chance < 1 else 0.0
    ratio = (honest - least) / (least + 1) * chance / (1 - chance) if chance < 1 else 0.0
    return math.log2(n) + (term - math.log1p(-ratio)) / math.log(2)


def _log2_sum(a: float, b: float) -> float:
    """Return log2(2^a + 2^b)."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log2(1 + 2.0 ** (low - high))


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
