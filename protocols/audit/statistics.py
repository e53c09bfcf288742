"""Tests of uniformity for masked vectors, of this package's protocol or of any other (D23).

Every test returns an upper bound of the p-value, the probability that uniform data look at least
as bad. The audit's properties raise an alarm below `ALARM`. In a run of at most 10,000 tests (2,000
examples a property) the probability of any false alarm is then below 10,000 * 1e-13 = 1e-9.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError

ALARM = 1e-13
MIN_EXPECTED = 100  # values per cell; with few of them the statistic is not chi-square distributed


def chi_square(values: NDArray[np.integer], cells: int) -> float:
    """Test whether values are uniform on 0..cells-1.

    Args:
        values: integers of any shape, at least 100 per cell.
        cells: number of possible values, at least 2.

    Returns:
        An upper bound of the p-value, by Chernoff: with k = cells - 1 degrees of freedom
        P(X >= x) <= exp(-(x - k - k·ln(x/k))/2) for x > k, else 1.

    Raises:
        ConfigError: too few values, or one outside the range.
    """
    flat = np.asarray(values).ravel()
    expected = flat.size / cells
    if expected < MIN_EXPECTED or flat.min() < 0 or flat.max() >= cells:
        raise ConfigError("chi-square needs 100 values per cell, all of them in range")
    counts = np.bincount(flat, minlength=cells)
    statistic, k = float(((counts - expected) ** 2).sum() / expected), cells - 1
    if statistic <= k:
        return 1.0
    return math.exp(-(statistic - k - k * math.log(statistic / k)) / 2)


def bit_plane(values: NDArray[np.integer], bit: int, p: int) -> float:
    """Test whether a bit of uniform values of GF(p) is set as often as it must be.

    The exact probability is not 1/2: the top bit of GF(13) is set in 5 of 13 elements.

    Args:
        values: integers in 0..p-1, any shape.
        bit: which bit, 0 the lowest.
        p: the modulus.

    Returns:
        An upper bound of the p-value, by Chernoff: 2·exp(-N·KL(observed ‖ exact)).
    """
    flat = np.asarray(values).ravel()
    exact = sum(v >> bit & 1 for v in range(p)) / p
    observed = int(np.count_nonzero(flat >> bit & 1)) / flat.size
    return min(1.0, 2 * math.exp(-flat.size * _divergence(observed, exact)))


def _divergence(q: float, p: float) -> float:
    """Return the Kullback-Leibler divergence of two coins, in nats."""
    parts = ((q, p), (1 - q, 1 - p))
    return sum(a * math.log(a / b) if b else math.inf for a, b in parts if a)


def linear_complexity(bits: NDArray[np.integer]) -> int:
    """Return the length of the shortest linear feedback shift register that gives a bit sequence.

    It is about N/2 for N random bits. The low bit plane of any sum of Mersenne Twister outputs has
    at most 19,937, the number of bits in its state (w1 in tests/protocols/README.md).

    Args:
        bits: 0 and 1, shape (N,).

    Source: Massey, Shift-register synthesis and BCH decoding, 1969; the registers are integers.
    """
    register, before, window = 1, 1, 0
    length, since = 0, 1
    for index, bit in enumerate(bits.tolist()):
        window = window << 1 | bit  # bit i is the i-th last of the sequence
        if (register & window).bit_count() & 1:
            update = register ^ before << since
            if 2 * length <= index:
                length, before, since = index + 1 - length, register, 0
            register = update
        since += 1
    return length


def complexity_alarm(bits: NDArray[np.integer]) -> float:
    """Test whether a sequence of bits has the linear complexity of a random one.

    Returns:
        2^(3-d), d = |L - N/2|, an upper bound of the p-value.
    """
    # The bound also holds for biased bits, such as the low bits of GF(p): a deviation of d takes 2d
    # right predictions, each with probability m < 0.7, and m^2d < 2^-d.
    deviation = abs(linear_complexity(bits) - bits.size / 2)
    return min(1.0, math.exp2(3 - deviation))


def uniform(values: NDArray[np.integer], p: int) -> dict[str, float]:
    """Run all tests on a vector that should be uniform on GF(p).

    Args:
        values: integers in 0..p-1, shape (N,); the complexity needs N = 45,000 to tell a Mersenne
            Twister from a cipher.
        p: the modulus. Every residue is a cell of the chi-square test, so p must be small.

    Returns:
        Name of the test -> upper bound of the p-value.
    """
    planes = {f"bit {b}": bit_plane(values, b, p) for b in range((p - 1).bit_length())}
    low = np.asarray(values).ravel() & 1
    return {"chi-square": chi_square(values, p), **planes, "complexity": complexity_alarm(low)}
