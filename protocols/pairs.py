"""Pairs of clients that lost each other, and how a request lists them (SPEC 5.5, 6.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from protocols.errors import DecodeError

Pairs = Iterable[tuple[int, int]]
"""Two client ids each."""

Places = tuple[tuple[int, int], ...]
"""Pairs of roster indices: ascending within every pair, and from pair to pair."""


def encode(pairs: Pairs, roster: tuple[int, ...]) -> Places:
    """Return pairs of clients as pairs of roster indices, in canonical order (SPEC 5.5)."""
    place = {client: index for index, client in enumerate(roster)}
    return tuple(sorted((place[min(pair)], place[max(pair)]) for pair in pairs))


def decode(places: Places, roster: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return the pairs of clients that a list names; the inverse of `encode`.

    Raises:
        DecodeError: an index beyond the roster, or not ascending within or among pairs.
    """
    n = len(roster)
    if not all(i < k < n for i, k in places) or not all(a < b for a, b in pairwise(places)):
        raise DecodeError("not a list of pairs of the roster")
    return tuple((roster[i], roster[k]) for i, k in places)


def peers(pairs: Pairs) -> dict[int, frozenset[int]]:
    """Return client -> the peers that it lost. Clients that lost nobody are missing."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for u, v in pairs:
        found[u].add(v)
        found[v].add(u)
    return {u: frozenset(others) for u, others in found.items()}
