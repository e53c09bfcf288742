"""Integer noise that clients add to integers before masking, so that only a noisy sum exists.

The sum of r shares of Skellam noise of variance v is exactly Skellam noise of variance r v
(Agarwal, Kairouz, Liu, The Skellam Mechanism, NeurIPS 2021). So the noise that is left after any
number of dropouts is known and can be accounted for. The sum of discrete Gaussian shares (Canonne,
Kamath, Steinke, NeurIPS 2020) is as private as continuous Gaussian noise of slightly less
variance (`mechanisms.DiscreteGaussianSum`).

Noise is drawn from a table of exact integers: samplers in floating point leave gaps and ties in
their output that tell which value was hidden (Mironov, CCS 2012).
"""

import bisect
import math
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import NoiseKind
from codream_secure.errors import UserError
from protocols.primitives.prg import KEY_SIZE, keystream

_DIGITS = 60
# The tails that are cut off have less than this part of the mass, on both sides together.
_TAIL = Decimal(2) ** -120
# The recurrence for Bessel functions starts so far out that its start no longer matters to 60
# digits.
_START_DEVIATIONS, _START_EXTRA = 17, 80
_WORD = 64
# A table for more variance takes minutes to build, and so much noise leaves a sum useless.
MOST_VARIANCE = 1 << 34


class IntegerNoise:
    """A distribution over the integers, symmetric around 0, that is drawn from a table.

    The time of a draw depends on the table. It depends on the value that is drawn only through
    one look-up in a sorted array; constant time is not claimed.

    Args:
        weights: weights of 0, 1, 2, ...; -k has the weight of k.

    Attributes:
        bound: the largest magnitude of a draw.

    Guarantee:
        The statistical distance of one draw from the distribution is below
        (2 * bound + 2) * 2^-128 + 2^-120.
    """

    def __init__(self, weights: list[Decimal]) -> None:
        with localcontext(Context(prec=_DIGITS)):
            total = weights[0] + 2 * sum(weights[1:])
            self.bound = _cut(weights, total)
            kept = weights[: self.bound + 1]
            whole = weights[0] + 2 * sum(kept[1:])
            self._thresholds = []
            below = Decimal(0)
            for weight in (*reversed(kept[1:]), *kept[:-1]):
                below += weight
                self._thresholds.append(int(below / whole * (1 << 2 * _WORD)))
        high = [threshold >> _WORD for threshold in self._thresholds]
        self._high = np.array(high, dtype=np.uint64)

    @classmethod
    @lru_cache(maxsize=16)
    def skellam(cls, variance: int) -> Self:
        """Return the difference of two Poisson variables of mean ``variance / 2``.

        Args:
            variance: a positive integer.

        Raises:
            ValueError: ``variance`` is below 1.
        """
        if variance < 1:
            raise ValueError(f"the variance of Skellam noise is a positive integer, not {variance}")
        with localcontext(Context(prec=_DIGITS)):
            return cls(_bessel(variance))

    @classmethod
    @lru_cache(maxsize=16)
    def discrete_gaussian(cls, variance: int) -> Self:
        """Return the distribution with weights exp(-k^2 / (2 * variance)) over the integers.

        Args:
            variance: the parameter, a positive integer; the true variance is this or slightly less.

        Raises:
            ValueError: ``variance`` is below 1.
        """
        if variance < 1:
            raise ValueError(f"the variance of integer noise is a positive integer, not {variance}")
        with localcontext(Context(prec=_DIGITS)):
            return cls(_gaussian(variance))

    @classmethod
    def of(cls, kind: NoiseKind, variance: int) -> "IntegerNoise":
        """Return the noise of a kind and an integer variance.

        Raises:
            UserError: ``variance`` is above `MOST_VARIANCE`.
        """
        if variance > MOST_VARIANCE:
            raise UserError(
                f"integer noise with a standard deviation of {math.isqrt(variance):,} steps, which "
                f"is more than {math.isqrt(MOST_VARIANCE):,}, is not drawn: ask for more epsilon"
            )
        return cls.skellam(variance) if kind == "skellam" else cls.discrete_gaussian(variance)

    def draw(self, count: int, key: bytes) -> NDArray[np.int64]:
        """Return ``count`` independent draws.

        Args:
            count: number of draws.
            key: 32 secret bytes, used for nothing else; AES-256-CTR under it gives 128 uniform
                bits for each draw.

        Returns:
            int64, shape (count,).
        """
        if len(key) != KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes")
        words = keystream(key, 2 * count * _WORD // 8).view("<u8").reshape(2, count)
        high, low = words[0].astype(np.uint64), words[1]
        found = np.searchsorted(self._high, high, side="right")
        # The lower 64 bits matter only where the upper 64 bits equal those of a threshold.
        ties = np.flatnonzero((found > 0) & (self._high[found - 1] == high))
        for index in ties:
            uniform = (int(high[index]) << _WORD) | int(low[index])
            found[index] = bisect.bisect_right(self._thresholds, uniform)
        return np.asarray(found.astype(np.int64) - self.bound)


def _cut(weights: list[Decimal], total: Decimal) -> int:
    """Return the largest k that is kept; all weights above it together are below `_TAIL`."""
    beyond = Decimal(0)
    for k in range(len(weights) - 1, 0, -1):
        beyond += 2 * weights[k]
        if beyond > _TAIL * total:
            return k
    return 0


def _gaussian(variance: int) -> list[Decimal]:
    """Return exp(-k^2 / (2 variance)) for k = 0, 1, ..."""
    # Each weight follows from the last, because (k + 1)^2 - k^2 = 2 k + 1.
    ratio = (Decimal(-1) / (2 * variance)).exp()
    square, weights = ratio * ratio, [Decimal(1)]
    for _ in range(math.ceil(_START_DEVIATIONS * math.sqrt(variance)) + 1):
        weights.append(weights[-1] * ratio)
        ratio *= square
    return weights


def _bessel(x: int) -> list[Decimal]:
    """Return I_k(x) for k = 0, 1, ..., up to a common factor, by Miller's recurrence.

    I_(k-1) = I_(k+1) + (2 k / x) I_k (DLMF 10.29.1), which is stable for falling k.
    """
    start = math.ceil(_START_DEVIATIONS * math.sqrt(x)) + _START_EXTRA
    values = [Decimal(0)] * (start + 2)
    values[start] = Decimal(1)
    for k in range(start, 0, -1):
        values[k - 1] = values[k + 1] + Decimal(2 * k) / x * values[k]
    return values[: start + 1]
