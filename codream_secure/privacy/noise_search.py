"""The one search for noise: the least noise with which releases fit a privacy budget."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import (
    REPORT_GRID,
    Release,
    check_budget,
    check_mechanism,
    dpsgd_epsilon,
    privacy_cost,
    training_mechanism,
)
from codream_secure.privacy.mechanisms import LEAST_VARIANCE, Mechanism, integer_mechanism

if TYPE_CHECKING:
    from codream_secure.aggregation.requests import NoiseKind

# The noise that is found is at most 0.1 % above the least. The search ends on the side that does
# not overspend.
_TOLERANCE = 1e-3
# A coarse grid of the privacy loss is ten times faster and errs towards more epsilon: by little
# for an epsilon near 8, by multiples for a small one. So it serves from epsilon 1 on.
_SEARCH_GRID = 1e-3
_COARSE_FROM = 1.0
# No sum or model survives more noise than this, so the search ends here.
_MOST_NOISE = 1e6
# Where the least variance of a share is enough, no smaller multiplier changes anything.
_LEAST_NOISE = 1e-6


@lru_cache(maxsize=64)
def noise_multiplier_for(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    others: tuple[Release, ...] = (),
    *,
    integers: bool = False,
) -> float:
    """Return the smallest noise multiplier with which private training fits a budget.

    It is at most 0.1 % above the least; where batches are sampled, the coarse grid of the search
    adds to that. Call it once for all steps of a run, never once a round: rounds that each have
    the whole budget spend more than the budget together.

    Args:
        epsilon: for the whole run, ``others`` included; in (0, 1000].
        delta: in (0, 1).
        sampling_rate: Poisson rate q in (0, 1].
        steps: private steps over all rounds, at least 1.
        others: what else is released about the same data.
        integers: as in `accounting.training`.

    Raises:
        UserError: an argument is out of range, or no noise up to 10^6 fits the budget.

    Guarantee:
        `privacy_cost` of training and ``others`` together is at most ``epsilon``.
    """
    check_budget(epsilon, delta)
    if steps < 1:
        raise UserError(f"noise is computed for at least 1 private step, not {steps}")
    check_mechanism(1.0, sampling_rate)
    start = math.sqrt(steps) * sampling_rate
    if others or integers:

        def tried(noise: float) -> Mechanism:
            return training_mechanism(noise, sampling_rate, integers=integers)

        return least_noise(epsilon, delta, tried, steps=steps, others=others, start=start)

    def overspends(noise: float, grid: float) -> bool:
        return dpsgd_epsilon(noise, sampling_rate, steps, delta, grid=grid) > epsilon

    coarse = _SEARCH_GRID if epsilon >= _COARSE_FROM else REPORT_GRID
    found = _search(lambda noise: overspends(noise, coarse), start)
    if found is None:
        raise UserError(
            f"no noise meets epsilon {epsilon} at delta {delta} over {steps} steps; "
            "ask for more epsilon or fewer steps"
        )
    while overspends(found, REPORT_GRID):
        found *= 1 + _TOLERANCE
    return found


def share_variance(
    epsilon: float,
    delta: float,
    *,
    noise: "NoiseKind",
    l2: int,
    length: int,
    shares: int,
    steps: int = 1,
) -> int:
    """Return the least variance of one share of noise with which sums fit a budget.

    The standard deviation of all shares together is at most 0.1 % above the least, before the
    variance of a share is rounded up to an integer.

    Args:
        epsilon: of these sums alone, in (0, 1000].
        delta: in (0, 1).
        noise: kind of noise.
        l2: sensitivity of the sum in the Euclidean norm, in integers.
        length: coordinates.
        shares: secret shares in every sum, at least 1.
        steps: sums.

    Raises:
        UserError: an argument is out of range, or no noise fits the budget.

    Guarantee:
        `privacy_cost` of ``steps`` sums is at most ``epsilon``, with ``shares`` shares of this
        variance in each.
    """

    def of_one_share(multiplier: float) -> int:
        # All shares together have the standard deviation multiplier * l2.
        least = LEAST_VARIANCE if noise == "gaussian" else 1
        return math.ceil(max(least, multiplier**2 * l2**2 / shares))

    def tried(multiplier: float) -> Mechanism:
        return integer_mechanism(noise, l2, length, of_one_share(multiplier), shares)

    return of_one_share(least_noise(epsilon, delta, tried, steps=steps, start=math.sqrt(steps)))


def least_noise(
    epsilon: float,
    delta: float,
    mechanism: Callable[[float], Mechanism],
    *,
    start: float = 1.0,
    steps: int = 1,
    others: Sequence[Release] = (),
) -> float:
    """Return the least noise multiplier, to 0.1 %, with which releases fit a budget.

    Args:
        epsilon: of all releases, ``others`` included; in (0, 1000].
        delta: in (0, 1).
        mechanism: the mechanism with a given noise multiplier.
        start: where the search begins.
        steps: releases of the mechanism.
        others: what else is released about the same data.

    Raises:
        UserError: an argument is out of range, or no noise up to 10^6 fits the budget.

    Guarantee:
        `privacy_cost` of all releases with the noise that is returned is at most ``epsilon``.
    """
    check_budget(epsilon, delta)

    def overspends(noise: float, grid: float) -> bool:
        # Costs do not depend on the names; the unit is that of the others.
        unit = others[0].unit if others else "example"
        made = Release(name="", unit=unit, adjacency="", mechanism=mechanism(noise), steps=steps)
        return privacy_cost([made, *others], delta, grid=grid).epsilon > epsilon

    coarse = _SEARCH_GRID if epsilon >= _COARSE_FROM else REPORT_GRID
    found = _search(lambda noise: overspends(noise, coarse), start)
    if found is not None:
        while overspends(found, REPORT_GRID):
            found *= 1 + _TOLERANCE
        return found
    if others:
        names = ", ".join(release.name for release in others)
        raise UserError(
            f"epsilon {epsilon:g} leaves nothing for training beside {names}; ask for more, or "
            "give these less"
        )
    raise UserError(f"no noise meets epsilon {epsilon:g} at delta {delta:g}")


def _search(overspends: Callable[[float], bool], start: float) -> float | None:
    """Return the least noise, to 0.1 %, that does not overspend; None if all up to 10^6 do.

    Args:
        overspends: whether a noise costs too much; if one does, every smaller one must too.
        start: where to begin. Begin near the answer: an epsilon far above the target is slow to
            compute.
    """
    high = max(1.0, start)
    while overspends(high):
        high *= 2
        if high > _MOST_NOISE:
            return None
    low = high / 2
    while low > _LEAST_NOISE and not overspends(low):
        low, high = low / 2, low
    while high / low > 1 + _TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if overspends(middle) else (low, middle)
    return high
