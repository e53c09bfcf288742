"""Shamir t-of-n sharing of 32-byte secrets over p = 2^256 - 189 (SPEC 3.6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

from protocols.errors import ConfigError, DecodeError
from protocols.primitives.keys import Entropy, draw

P = 2**256 - 189
SIZE = 32


def draw_element(entropy: Entropy) -> bytes:
    """Return a uniform field element, 32 bytes big-endian. It rejects one draw in about 2^248."""
    while True:
        candidate = draw(entropy, SIZE)
        if int.from_bytes(candidate, "big") < P:
            return candidate


def decode_element(data: bytes) -> int:
    """Return the field element that 32 bytes encode.

    Raises:
        DecodeError: wrong size, or not below p.
    """
    value = int.from_bytes(data, "big")
    if len(data) != SIZE or value >= P:
        raise DecodeError("not an encoding of a field element")
    return value


def split(secret: bytes, others: Sequence[int], points: Iterable[int]) -> dict[int, bytes]:
    """Share a secret: len(others) + 1 shares rebuild it, fewer reveal nothing about it.

    Args:
        secret: 32 bytes encoding an element below p.
        others: the polynomial's other coefficients, highest degree first.
        points: distinct x coordinates, roster index + 1. x = 0 would be the secret itself.

    Returns:
        x -> share, 32 bytes each.

    Raises:
        ConfigError: too few, repeated or zero points.
        DecodeError: the secret is not a field element.
    """
    xs = tuple(points)
    coefficients = (*others, decode_element(secret))
    _check_points(xs, len(coefficients))
    return {x: evaluate(coefficients, x).to_bytes(SIZE, "big") for x in xs}


def reconstruct(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Rebuild a secret from the `threshold` shares of the smallest x.

    Args:
        shares: x -> share; at least `threshold` of them.
        threshold: the number the secret was shared with.

    Raises:
        ConfigError: too few shares, or a zero x.
        DecodeError: a share is not a field element.
    """
    xs = tuple(sorted(shares)[:threshold])
    _check_points(xs, threshold)
    weights = lagrange_at_zero(xs)
    terms = (w * decode_element(shares[x]) for w, x in zip(weights, xs, strict=True))
    return (sum(terms) % P).to_bytes(SIZE, "big")


@lru_cache(maxsize=32)
def lagrange_at_zero(xs: tuple[int, ...]) -> tuple[int, ...]:
    """Return the Lagrange coefficients at 0 for the points `xs`.

    The cache pays: the same clients answer for all secrets of an aggregation.
    """
    product = 1
    for x in xs:
        product = product * -x % P
    inverses = _inverses([-x for x in xs])
    weights = barycentric_weights(xs)
    return tuple(product * i * w % P for i, w in zip(inverses, weights, strict=True))


@lru_cache(maxsize=32)
def barycentric_weights(xs: tuple[int, ...]) -> tuple[int, ...]:
    """Return 1 / product of (x - other) for every x of `xs`, over the others."""
    products = []
    for x in xs:
        product = 1
        for other in xs:
            if other != x:
                product = product * (x - other) % P
        products.append(product)
    return tuple(_inverses(products))


def _inverses(values: Sequence[int]) -> list[int]:
    """Return the inverses mod P of non-zero values, by one inversion of their product."""
    products = list(accumulate(values, lambda a, b: a * b % P, initial=1))
    inverse = pow(products[-1], -1, P)
    inverses = []
    for value, before in zip(reversed(values), reversed(products[:-1]), strict=True):
        inverses.append(inverse * before % P)
        inverse = inverse * value % P
    return inverses[::-1]


def _check_points(xs: Sequence[int], threshold: int) -> None:
    if threshold < 1 or len(xs) < threshold:
        raise ConfigError("fewer share points than the threshold")
    if len(set(xs)) != len(xs) or any(not 0 < x < P for x in xs):
        raise ConfigError("share points must be distinct and not zero")


def evaluate(coefficients: Sequence[int], x: int) -> int:
    """Return a polynomial's value at x. The highest coefficient stands first."""
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % P
    return value
