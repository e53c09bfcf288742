"""Dealing training examples to clients, and setting some of a client's aside.

Only a simulation partitions: it plays all clients and therefore sees all labels.
"""

from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from codream_secure.errors import UserError

# Above this, Dir(alpha) is uniform to six digits, and its sampler's sums could overflow.
_ALPHA_CEILING: Final = 1e12
_SPLIT_MIN: Final = 2

Indices = NDArray[np.int64]


def partition(
    labels: NDArray[np.int64],
    clients: int,
    scheme: str,
    seed: int,
    *,
    min_examples: int = 2,
) -> list[Indices]:
    """Deal all examples to clients, each example to exactly one.

    Client sizes are equal up to one under both schemes: `iid` cuts a random permutation;
    `dirichlet:ALPHA` draws for every client its own class proportions from Dir(ALPHA, ..., ALPHA),
    and gives it as near to them as the examples that are left allow. The smaller ALPHA, the more
    the clients differ.

    Args:
        labels: int64, N, in [0, classes).
        clients: Number of clients.
        scheme: `iid`, or `dirichlet:ALPHA` with a positive number, as in `dirichlet:0.5`.
        seed: Not negative; the same arguments give the same partition.
        min_examples: Every client must get this many. The default leaves one example to train
            on and one to validate on.

    Returns:
        For every client, int64 positions in `labels`, in random order.

    Raises:
        UserError: The scheme is unknown, its ALPHA no positive finite number, or there are too
            few examples for so many clients.
    """
    alpha = _parse_scheme(scheme)
    if clients < 1:
        msg = f"cannot deal examples to {clients} clients; use at least 1"
        raise UserError(msg)
    if len(labels) // clients < max(min_examples, 1):
        msg = (
            f"{len(labels)} training examples are too few for {clients} clients with at least"
            f" {max(min_examples, 1)} each; use fewer clients or more data"
        )
        raise UserError(msg)
    rng = np.random.default_rng(seed)
    if alpha is None:
        return np.array_split(rng.permutation(len(labels)), clients)
    return _deal(labels, _dirichlet_counts(np.bincount(labels), clients, alpha, rng), rng)


def split_validation(
    indices: Indices, labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Set part of a client's examples aside for validation.

    Every class gives its share, up to one example; both sides get at least one example.

    Args:
        indices: int64, the client's positions in `labels`, at least two.
        labels: int64, the labels of all clients' examples.
        fraction: Wanted share of validation examples, strictly between 0 and 1.
        seed: Not negative; the same arguments give the same split.

    Returns:
        Positions to train on and positions to validate on, both in random order.

    Raises:
        UserError: The fraction is out of range, or there are fewer than two examples.
    """
    if not 0 < fraction < 1:
        msg = f"the validation fraction must be between 0 and 1, not {fraction}"
        raise UserError(msg)
    if len(indices) < _SPLIT_MIN:
        msg = f"a client with {len(indices)} examples has none to validate on; use fewer clients"
        raise UserError(msg)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(indices)
    wanted = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
    sizes = np.bincount(labels[shuffled])
    quotas = _largest_remainders(wanted * sizes / len(indices), wanted, rng)
    rank = _rank_within_class(labels[shuffled])
    validation = rank < quotas[labels[shuffled]]
    return shuffled[~validation], shuffled[validation]


def label_histogram(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count the examples of every class.

    Args:
        labels: int64, any length, in [0, classes).
        classes: Number of classes.

    Returns:
        int64, one count a class. Private to the client whose labels they are.
    """
    return np.bincount(labels, minlength=classes).astype(np.int64)


def _parse_scheme(scheme: str) -> float | None:
    """Return ALPHA, or None for `iid`."""
    if scheme == "iid":
        return None
    name, _, text = scheme.partition(":")
    if name != "dirichlet":
        msg = f"unknown partition {scheme!r}: use iid or dirichlet:ALPHA, as in dirichlet:0.5"
        raise UserError(msg)
    try:
        alpha = float(text)
    except ValueError:
        alpha = float("nan")
    if not isfinite(alpha) or alpha <= 0:
        msg = f"ALPHA in {scheme!r} must be a positive finite number, as in dirichlet:0.5"
        raise UserError(msg)
    return alpha


def _dirichlet_counts(
    available: Indices, clients: int, alpha: float, rng: np.random.Generator
) -> Indices:
    """How many examples of every class every client gets: int64, clients x classes."""
    priors = rng.dirichlet(np.full(len(available), min(alpha, _ALPHA_CEILING)), size=clients)
    total = int(available.sum())
    sizes = total // clients + (np.arange(clients) < total % clients)
    counts = np.zeros(priors.shape, dtype=np.int64)
    # A pass ends with all clients full or with one more class used up, so there are few.
    while (missing := sizes - counts.sum(axis=1)).any():
        left = available - counts.sum(axis=0)
        drawn = rng.multinomial(missing, _renormalized(priors, left))
        for label in np.flatnonzero(drawn.sum(axis=0) > left):
            # Chance, not the order of the clients, decides who goes without.
            drawn[:, label] = rng.multivariate_hypergeometric(drawn[:, label], left[label])
        counts += drawn
    return counts


def _renormalized(priors: NDArray[np.float64], left: Indices) -> NDArray[np.float64]:
    """Every client's proportions over the classes that have examples left."""
    weights = priors * (left > 0)
    # With a small alpha all of a client's mass can sit, to machine precision, on classes that
    # are used up; then it takes what there is.
    weights[weights.sum(axis=1) < np.finfo(np.float64).tiny] = left
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def _deal(labels: NDArray[np.int64], counts: Indices, rng: np.random.Generator) -> list[Indices]:
    """Give every client random examples of each class, as many as `counts` says."""
    parts: list[list[Indices]] = [[] for _ in counts]
    for label in range(counts.shape[1]):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum(counts[:, label])[:-1]
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _largest_remainders(
    shares: NDArray[np.float64], total: int, rng: np.random.Generator
) -> Indices:
    """Round shares to integers that sum to `total`; chance decides between equal remainders."""
    whole = np.floor(shares).astype(np.int64)
    order = np.lexsort((rng.random(len(shares)), whole - shares))
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def _rank_within_class(labels: NDArray[np.int64]) -> Indices:
    """For every position, how many earlier ones have the same label."""
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(np.bincount(labels)) - np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    return rank
