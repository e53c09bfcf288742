"""Deal training examples to clients, and set some of a client's examples aside for validation.

Only a simulation deals: it plays all clients and therefore sees all labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from codream_secure.errors import UserError

# Above this, Dir(alpha) is uniform to six digits, and its sampler's sums could overflow.
_ALPHA_CEILING: Final = 1e12
_SPLIT_MIN: Final = 2
_DRAWS: Final = 200
_SCHEMES: Final = "iid, dirichlet:ALPHA, dirichlet-labels:ALPHA or shards:CLASSES_PER_CLIENT"

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Request:
    """The checked arguments of `partition`.

    Attributes:
        scheme: As the user wrote it, for messages.
        number: ALPHA, or the classes per client; 0 under `iid`.
        clients: Number of clients.
        samples: Examples of each client; None deals all examples.
        least: Examples that every client must get.
    """

    scheme: str
    number: float
    clients: int
    samples: int | None
    least: int

    def sizes(self, total: int) -> Indices:
        """Return the sizes of the clients' parts, int64; they differ by at most one."""
        if self.samples is not None:
            return np.full(self.clients, self.samples, dtype=np.int64)
        return total // self.clients + (np.arange(self.clients) < total % self.clients)


def partition(
    labels: NDArray[np.int64],
    clients: int,
    scheme: str,
    seed: int,
    *,
    samples_per_client: int | None = None,
    min_examples: int = 2,
) -> list[Indices]:
    """Deal examples to clients, each example to at most one.

    - `iid` cuts a random permutation. Sizes are equal up to one.
    - `dirichlet:ALPHA` draws class proportions for every client from Dir(ALPHA, ..., ALPHA). The
      client gets examples in these proportions, as closely as the remaining examples allow.
      Sizes are equal up to one. This is the partition of Hsu et al. (2019), with a uniform prior
      and without replacement, and of the CoDream paper (AAAI-25).
    - `dirichlet-labels:ALPHA` draws for every class the proportions in which clients share it
      (Yurochkin et al. 2019). Sizes differ. A draw in which a client has fewer than
      `min_examples` examples is repeated.
    - `shards:CLASSES_PER_CLIENT` gives every client examples of exactly this many classes (after
      McMahan et al. 2017). Every class goes to the same number of clients, up to one, and is cut
      into one shard for each of them; its shards have equal size, up to one.

    A smaller ALPHA makes the clients more different.

    Args:
        labels: int64, N, in [0, classes).
        clients: Number of clients.
        scheme: `iid`, or one of the others with a positive number, as in `dirichlet:0.5`.
        seed: Not negative; the same arguments give the same partition.
        samples_per_client: Number of examples for every client (the mean number under
            `dirichlet-labels`); the others are not used. None deals all examples.
        min_examples: Least number for every client. The default leaves one example for training
            and one for validation.

    Returns:
        One int64 array for each client: positions in `labels`, in random order.

    Raises:
        UserError: The scheme or its number is not valid, or there are too few examples for this
            number of clients.
    """
    if clients < 1:
        msg = f"cannot deal examples to {clients} clients; use at least 1"
        raise UserError(msg)
    name, number = _parse_scheme(scheme)
    least = max(min_examples, 1)
    request = _Request(scheme, number, clients, samples_per_client, least)
    _check_enough(len(labels), request)
    rng = np.random.default_rng(seed)
    if name == "iid":
        sizes = request.sizes(len(labels))
        return np.split(rng.permutation(len(labels))[: sizes.sum()], np.cumsum(sizes)[:-1])
    return _deal(labels, _COUNTS[name](np.bincount(labels), request, rng), rng)


def split_validation(
    indices: Indices, labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Set part of a client's examples aside for validation.

    Every class contributes in proportion, up to one example. Both parts get at least one.

    Args:
        indices: int64, the client's positions in `labels`, at least two.
        labels: int64, the labels of all clients' examples.
        fraction: Share of validation examples, strictly between 0 and 1.
        seed: Not negative; the same arguments give the same split.

    Returns:
        Positions for training and positions for validation, both in random order.

    Raises:
        UserError: The fraction is out of range, or there are fewer than two examples.
    """
    if not 0 < fraction < 1:
        msg = f"the validation fraction must be between 0 and 1, not {fraction}"
        raise UserError(msg)
    if len(indices) < _SPLIT_MIN:
        msg = (
            f"a client with {len(indices)} examples has none left for validation; use fewer clients"
        )
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
        int64, one count for each class. The counts are private to the client.
    """
    return np.bincount(labels, minlength=classes).astype(np.int64)


def _parse_scheme(scheme: str) -> tuple[str, float]:
    """Return the scheme's name and its number, 0 for `iid`."""
    if scheme == "iid":
        return scheme, 0
    name, _, text = scheme.partition(":")
    if name not in _COUNTS:
        msg = f"unknown partition {scheme!r}: use {_SCHEMES}, as in dirichlet:0.5"
        raise UserError(msg)
    if name == "shards":
        if not text.isascii() or not text.isdecimal() or int(text) < 1:
            msg = f"CLASSES_PER_CLIENT in {scheme!r} must be a positive integer, as in shards:2"
            raise UserError(msg)
        return name, int(text)
    try:
        alpha = float(text)
    except ValueError:
        alpha = float("nan")
    if not isfinite(alpha) or alpha <= 0:
        msg = f"ALPHA in {scheme!r} must be a positive finite number, as in {name}:0.5"
        raise UserError(msg)
    return name, min(alpha, _ALPHA_CEILING)


def _check_enough(total: int, request: _Request) -> None:
    clients, samples, least = request.clients, request.samples, request.least
    if total // clients < least:
        msg = (
            f"{total} training examples are too few for {clients} clients with at least"
            f" {least} each; use fewer clients or more data"
        )
        raise UserError(msg)
    if samples is None:
        return
    if samples < least:
        msg = f"{samples} samples per client are too few: every client needs at least {least}"
        raise UserError(msg)
    if samples * clients > total:
        msg = (
            f"{samples} samples per client for {clients} clients are {samples * clients}, and"
            f" there are {total} training examples; use at most {total // clients} samples per"
            " client or fewer clients"
        )
        raise UserError(msg)


def _dirichlet_counts(available: Indices, request: _Request, rng: np.random.Generator) -> Indices:
    """Return the number of examples of each class for each client: int64, clients x classes."""
    priors = rng.dirichlet(np.full(len(available), request.number), size=request.clients)
    sizes = request.sizes(int(available.sum()))
    counts = np.zeros(priors.shape, dtype=np.int64)
    # Each pass fills all clients or uses up at least one more class, so there are few passes.
    while (missing := sizes - counts.sum(axis=1)).any():
        left = available - counts.sum(axis=0)
        drawn = rng.multinomial(missing, _renormalized(priors, left))
        for label in np.flatnonzero(drawn.sum(axis=0) > left):
            # Too many asked for this class: chance, not the clients' order, decides who gets it.
            drawn[:, label] = rng.multivariate_hypergeometric(drawn[:, label], left[label])
        counts += drawn
    return counts


def _dirichlet_labels_counts(
    available: Indices, request: _Request, rng: np.random.Generator
) -> Indices:
    """As `_dirichlet_counts`, for `dirichlet-labels`."""
    if request.samples is not None:
        available = rng.multivariate_hypergeometric(available, request.samples * request.clients)
    for _ in range(_DRAWS):
        shares = rng.dirichlet(np.full(request.clients, request.number), size=len(available))
        cuts = np.rint(np.cumsum(shares, axis=1) * available[:, None]).astype(np.int64)
        cuts[:, -1] = available  # the sum of the shares may be rounded to less
        counts = np.diff(cuts, axis=1, prepend=0).T
        if counts.sum(axis=1).min() >= request.least:
            return counts
    msg = (
        f"{request.scheme} left a client with fewer than {request.least} examples in {_DRAWS}"
        " draws; use a larger ALPHA, fewer clients, or dirichlet:ALPHA, where sizes are equal"
    )
    raise UserError(msg)


def _shard_counts(available: Indices, request: _Request, rng: np.random.Generator) -> Indices:
    """As `_dirichlet_counts`, for `shards`."""
    held = _held_classes(available, request, rng)
    holders = held.sum(axis=0)
    counts = np.zeros(held.shape, dtype=np.int64)
    for label in np.flatnonzero(available):
        if available[label] < holders[label]:
            msg = (
                f"{request.scheme}: {holders[label]} clients should have class {label}, which has"
                f" {available[label]} training examples; use fewer clients or classes per client"
            )
            raise UserError(msg)
        whole, rest = divmod(int(available[label]), int(holders[label]))
        sizes = whole + (np.arange(holders[label]) < rest)
        counts[held[:, label], label] = rng.permutation(sizes)
    smallest = int(counts.sum(axis=1).min())
    if smallest < (request.samples or request.least):
        msg = (
            f"{request.scheme} leaves a client with {smallest} examples, and it needs"
            f" {request.samples or request.least}; use fewer clients or samples per client, or"
            " more classes per client"
        )
        raise UserError(msg)
    if request.samples is not None:
        counts = np.stack([_levelled(row, request.samples, rng) for row in counts])
    return counts


def _held_classes(
    available: Indices, request: _Request, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return which client has which class: `number` for each client, classes equally often."""
    classes, wanted = np.flatnonzero(available), int(request.number)
    if wanted > len(classes):
        msg = f"{request.scheme}: the data has {len(classes)} classes; use at most as many"
        raise UserError(msg)
    if request.samples is not None and request.samples < wanted:
        msg = f"{request.scheme} needs at least {wanted} samples per client, one of every class"
        raise UserError(msg)
    if wanted * request.clients < len(classes):
        msg = (
            f"{request.scheme} with {request.clients} clients covers"
            f" {wanted * request.clients} of {len(classes)} classes; use at least"
            f" shards:{-(-len(classes) // request.clients)} or more clients"
        )
        raise UserError(msg)
    held = np.zeros((request.clients, len(available)), dtype=np.bool_)
    for client in range(request.clients):
        so_far = held.sum(axis=0)[classes]
        # First the classes that the fewest clients have; chance decides between equal ones.
        order = np.lexsort((rng.random(len(classes)), so_far))
        held[client, classes[order[:wanted]]] = True
    return held


def _levelled(limits: Indices, total: int, rng: np.random.Generator) -> Indices:
    """Return numbers that add up to `total`: at most `limits`, and otherwise equal up to one."""
    taken = np.zeros_like(limits)
    while (rest := total - int(taken.sum())) > 0:
        below = np.flatnonzero(taken < limits)
        if rest < len(below):
            taken[rng.permutation(below)[:rest]] += 1
        else:
            taken[below] = np.minimum(taken[below] + rest // len(below), limits[below])
    return taken


_COUNTS: Final[dict[str, Callable[[Indices, _Request, np.random.Generator], Indices]]] = {
    "dirichlet": _dirichlet_counts,
    "dirichlet-labels": _dirichlet_labels_counts,
    "shards": _shard_counts,
}


def _renormalized(priors: NDArray[np.float64], left: Indices) -> NDArray[np.float64]:
    """Return each client's proportions over the classes that still have examples."""
    weights = priors * (left > 0)
    # With a small alpha, all of a client's probability can lie on classes that are used up (the
    # rest is below the smallest float). Such a client draws from all remaining examples.
    weights[weights.sum(axis=1) < np.finfo(np.float64).tiny] = left
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def _deal(labels: NDArray[np.int64], counts: Indices, rng: np.random.Generator) -> list[Indices]:
    """Give every client `counts` random examples of each class."""
    parts: list[list[Indices]] = [[] for _ in counts]
    for label in range(counts.shape[1]):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(counts[:, label])
        for part, piece in zip(parts, np.split(members[: ends[-1]], ends[:-1]), strict=True):
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
    """Return for each position how many earlier positions have the same label."""
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(np.bincount(labels)) - np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    return rank
