"""What noisy sums may still cost together: a filter, so that later noise may follow earlier sums.

Every sum of discrete Gaussian shares is as private as a continuous Gaussian (docs/accounting.md).
Its *signal* is (sensitivity / noise)^2. Signals of releases about the same data add up, and
releases whose signals add up to at most s are together as private as one Gaussian release of signal
s, even if each one's noise is chosen by the results of those before (Smith and Thakurta, Fully
Adaptive Composition for Gaussian Differential Privacy, 2022). So one number is a whole budget.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import check_budget, epsilon_of
from codream_secure.privacy.mechanisms import LEAST_VARIANCE, ROUNDING, DiscreteGaussianSum

# What all sums of a run may add to epsilon for being sums of discrete shares. One sum adds far
# less (`DiscreteGaussianSum.slack`): below 1e-22 even for 1,000 shares and 10^8 coordinates.
_MOST_SLACK = 1e-15
_HALVINGS = 100


@lru_cache(maxsize=64)
def most_signal(epsilon: float, delta: float) -> float:
    """Return the largest signal that costs at most ``epsilon``, to a relative 1e-6.

    Args:
        epsilon: in (0, 1000].
        delta: in (0, 1).

    Raises:
        UserError: an argument is out of range.

    Guarantee:
        By `epsilon_of` (PLD in closed form, Balle and Wang, ICML 2018), with the slack of all sums.
        Test: tests/codream_secure/privacy/test_sum_plan.py.
    """
    from dp_accounting import GaussianDpEvent  # noqa: PLC0415 - slow

    check_budget(epsilon, delta)

    def overspends(signal: float) -> bool:
        event = GaussianDpEvent(1 / math.sqrt(signal))
        found = epsilon_of([event], delta * math.exp(-_MOST_SLACK))
        return found + 2 * _MOST_SLACK > epsilon

    low, high = 0.0, 1.0
    while not overspends(high):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        if low and high / low < 1 + 1e-6:
            break
        middle = (low + high) / 2
        low, high = (low, middle) if overspends(middle) else (middle, high)
    if not low:
        raise UserError(f"no noise meets epsilon {epsilon:g} at delta {delta:g}")
    return low * (1 - 1e-9)  # sums of signals in floating point stay below the budget


def signal_of(mechanism: DiscreteGaussianSum) -> float:
    """Return the signal of one sum; infinite if its shares are too small for a bound."""
    noise = mechanism.noise_multiplier
    return 1 / noise**2 if noise else math.inf


def variance_for(signal: float, l2: int, shares: int) -> int:
    """Return the least variance of a share with which ``shares`` shares give at most ``signal``.

    Args:
        signal: above 0.
        l2: sensitivity of the sum in the Euclidean norm, in integers.
        shares: secret shares in the sum, at least 1.
    """
    # A little more, so that rounding of floating-point numbers cannot bring it above the signal.
    wanted = l2**2 / signal * (1 + 1e-12)
    return max(math.ceil(LEAST_VARIANCE), math.ceil((wanted + ROUNDING) / shares))


@dataclass(slots=True)
class SumFilter:
    """Counts the signal of sums, and refuses one that might exceed the budget.

    A sum counts with as few shares as are planned for, until its survivors are known.

    Attributes:
        limit: the signal of all sums together at most.
        spent: signal of the sums that have ended.
        open: signal that the sum that was begun may have.

    Guarantee:
        ``spent + open`` never exceeds ``limit``, whatever the survivors are and whoever chooses
        the noise; so all sums together are as private as one Gaussian release of signal ``limit``.
        Test: tests/codream_secure/privacy/test_sum_plan.py.
    """

    limit: float
    spent: float = 0.0
    open: float = 0.0

    @property
    def left(self) -> float:
        """The signal that one more sum may have."""
        return max(0.0, self.limit - self.spent - self.open)

    def fits(self, worst: float) -> bool:
        """Tell whether one more sum of this signal fits."""
        return worst <= self.left

    def begin(self, worst: float) -> None:
        """Count a sum that has at most the signal ``worst``; the one before it keeps its own.

        Raises:
            ValueError: it does not fit.
        """
        if not self.fits(worst):
            raise ValueError("the noisy sum would exceed the budget")
        self.spent += self.open
        self.open = worst

    def end(self, signal: float) -> None:
        """Count the sum that was begun with the signal that it really had."""
        self.spent += min(signal, self.open)
        self.open = 0.0
