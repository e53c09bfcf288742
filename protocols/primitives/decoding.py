"""Which shares are wrong: unique decoding of Reed-Solomon codes over GF(P) (SPEC 3.7).

Shares of one seed are values of a polynomial of degree threshold - 1. A combination of the shares
of several seeds, with the same coefficients for every holder, is so too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocols.errors import CryptoError
from protocols.primitives.shamir import P, barycentric_weights, evaluate


def errors(values: Mapping[int, int], threshold: int) -> frozenset[int]:
    """Find the places at which values differ from a polynomial of degree threshold - 1.

    Berlekamp-Massey on the syndromes finds what Gao's and Berlekamp and Welch's algorithms find,
    with fewer multiplications.

    Args:
        values: x -> value in GF(P); distinct x, not zero; at least `threshold` of them.
        threshold: the number of values that determine the polynomial.

    Returns:
        The x of the wrong values.

    Raises:
        CryptoError: no polynomial differs in (len(values) - threshold) // 2 places or fewer.
    """
    xs = tuple(sorted(values))
    locator = _shortest_recurrence(_syndromes(xs, values, threshold))
    found = frozenset(x for x in xs if evaluate(locator, x) == 0) if len(locator) > 1 else ()
    # A recurrence of full degree with all its roots among the x is the sum of that many errors.
    if len(found) != len(locator) - 1 or 2 * len(found) > len(xs) - threshold:
        raise CryptoError("too many values are wrong")
    return frozenset(found)


def _syndromes(xs: Sequence[int], values: Mapping[int, int], threshold: int) -> list[int]:
    """Return the sums of w(x) values(x) x^j. They are zero if no value is wrong."""
    terms = [w * values[x] % P for w, x in zip(barycentric_weights(xs), xs, strict=True)]
    syndromes = []
    for _ in range(len(xs) - threshold):
        syndromes.append(sum(terms) % P)
        terms = [term * x % P for term, x in zip(terms, xs, strict=True)]
    return syndromes


def _shortest_recurrence(sequence: Sequence[int]) -> list[int]:
    """Return the coefficients c_0 = 1, c_1, .. of the shortest linear recurrence (Massey 1969).

    sum of c_i sequence[j - i] = 0 for all j from len(c) - 1. As a polynomial, c_0 is the
    coefficient of the highest degree.
    """
    current, before = [1], [1]
    length, gap, scale = 0, 1, 1  # `gap`: age of `before`; `scale`: 1 / its error
    for j in range(len(sequence)):
        recent = reversed(sequence[max(0, j + 1 - len(current)) : j + 1])
        wrong = sum(c * s for c, s in zip(current, recent, strict=False)) % P
        if wrong == 0:
            gap += 1
            continue
        factor, old = wrong * scale % P, current
        current = current + [0] * (len(before) + gap - len(current))
        for i, c in enumerate(before, gap):
            current[i] = (current[i] - factor * c) % P
        if 2 * length <= j:
            length, before, scale, gap = j + 1 - length, old, pow(wrong, -1, P), 1
        else:
            gap += 1
    return current + [0] * (length + 1 - len(current))
