"""Accounting of DP-SGD: noise for a budget, epsilon of what was run, and the budget's keeper.

All figures come from dp_accounting: its PLD accountant, or where no batch is sampled the closed
form of the same distribution. RDP is 7-15 % looser; the GDP accountant under-reports by up to 12 %
and is refused.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from codream_secure.errors import UserError

ACCOUNTANT = "pld"

# Relative precision of a noise multiplier; the search never ends on the overspending side.
_TOLERANCE = 1e-3
# Grid of the privacy loss. A coarser grid is ten times faster and errs towards more epsilon:
# by little for epsilon near 8, by multiples for a small one.
REPORT_GRID = 1e-4
_SEARCH_GRID = 1e-3
# Computing time and memory grow with epsilon, which far below this bound protects nobody.
_LARGEST_EPSILON = 1000.0
# A root is found to 1e-12; that much more, a thousand times over, is added.
_ABOVE_ROOT = 1e-9
# Beyond it epsilon is above 10^11 and its root is not found.
_MOST_SIGNAL = 1e6
# Noise multipliers above are of no use to anybody.
_MOST_NOISE = 1e6


class BudgetExhausted(Exception):  # noqa: N818 - the state that the caller meets
    """One more private step would exceed the number that the noise was computed for."""


class PrivacyBudget:
    """Counts one client's private steps against the total that its noise was computed for.

    A step is charged before anything is computed from data, and stays charged whatever happens
    to it afterwards.

    Args:
        total_steps: T, public and independent of the client's data.

    Raises:
        UserError: T is negative.

    Guarantee:
        `charge` returns at most T times, also when steps abort in between.
    """

    def __init__(self, total_steps: int) -> None:
        if total_steps < 0:
            raise UserError(f"a budget cannot have {total_steps} steps")
        self.total_steps = total_steps
        self.steps_taken = 0

    def charge(self) -> None:
        """Charge one step.

        Raises:
            BudgetExhausted: all steps are spent; nothing was charged.
        """
        if self.steps_taken >= self.total_steps:
            raise BudgetExhausted(f"all {self.total_steps} private steps are spent")
        self.steps_taken += 1


def check_accountant(name: str) -> None:
    """Refuse every accountant but PLD.

    Raises:
        UserError: always for others, with the reason for GDP.
    """
    if name == ACCOUNTANT:
        return
    reason = "; GDP under-reports by up to 12 %" if name == "gdp" else ""
    raise UserError(f"accountant {name!r} is not accepted{reason}; use {ACCOUNTANT!r}")


def check_budget(epsilon: float, delta: float) -> None:
    """Refuse a budget that means nothing.

    Raises:
        UserError: epsilon is not in (0, 1000], or delta not inside (0, 1).
    """
    if not 0 < epsilon <= _LARGEST_EPSILON:
        raise UserError(f"epsilon must be above 0 and at most {_LARGEST_EPSILON:g}, not {epsilon}")
    check_delta(delta)


def check_mechanism(noise_multiplier: float, sampling_rate: float) -> None:
    """Refuse a step that is no Poisson-sampled Gaussian mechanism.

    Raises:
        UserError: the noise multiplier is not positive and finite, or the rate not in (0, 1].
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise UserError(f"the noise multiplier must be positive and finite, not {noise_multiplier}")
    if not 0 < sampling_rate <= 1:
        raise UserError(f"the sampling rate must be above 0 and at most 1, not {sampling_rate}")


def check_delta(delta: float) -> None:
    """Raise UserError unless delta is inside (0, 1)."""
    if not 0 < delta < 1:
        raise UserError(f"delta must be between 0 and 1, not {delta}")


def check_meaning(delta: float, units: int) -> None:
    """Refuse a delta that allows somebody's data to be published outright.

    Args:
        delta: of the guarantee.
        units: how many are protected, examples or clients; public.

    Raises:
        UserError: delta is not below 1 / units.
    """
    if delta * units >= 1:
        raise UserError(
            f"--dp-delta {delta:g} allows one of {units} to be published: give it less than "
            f"{1 / units:.2g}, better a tenth of that"
        )


def dpsgd_event(noise_multiplier: float, sampling_rate: float, steps: int) -> Any:  # noqa: ANN401
    """Return dp_accounting's event of ``steps`` DP-SGD steps (Abadi et al. 2016)."""
    from dp_accounting import dp_event  # noqa: PLC0415 - takes a second to import

    if sampling_rate == 1:
        # T Gaussian releases of full batches are one Gaussian release with less noise, exactly.
        return dp_event.GaussianDpEvent(noise_multiplier / math.sqrt(steps))
    step = dp_event.PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent(noise_multiplier))
    return dp_event.SelfComposedDpEvent(step, steps)


def epsilon_spent(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    *,
    grid: float = REPORT_GRID,
) -> float:
    """Return epsilon of ``steps`` DP-SGD steps at ``delta``, by PLD.

    Args:
        noise_multiplier: standard deviation of the noise over the clip.
        sampling_rate: Poisson rate q in (0, 1].
        steps: private steps taken; 0 costs nothing.
        delta: in (0, 1).
        grid: discretization of the privacy loss.

    Raises:
        UserError: an argument is out of range.

    Guarantee:
        An upper bound (PLD rounds pessimistically) for adding or removing one example.
    """
    check_mechanism(noise_multiplier, sampling_rate)
    check_delta(delta)
    if steps < 0:
        raise UserError(f"the number of private steps cannot be {steps}")
    if steps == 0:
        return 0.0
    return epsilon_of([dpsgd_event(noise_multiplier, sampling_rate, steps)], delta, grid=grid)


def epsilon_of(events: Sequence[Any], delta: float, *, grid: float = REPORT_GRID) -> float:
    """Return epsilon of dp_accounting's events together, by their privacy loss distribution.

    Gaussian releases alone are one Gaussian release, whose distribution has a closed form (Balle
    and Wang, ICML 2018): exact, and hundreds of times faster than a grid. All else is PLD on one.

    Args:
        events: at least one.
        delta: in (0, 1).
        grid: discretization of the privacy loss.

    Guarantee:
        An upper bound; the closed form's is the root that was found and 1e-9 more.
    """
    from dp_accounting import GaussianDpEvent, get_epsilon_gaussian  # noqa: PLC0415 - slow

    if all(isinstance(event, GaussianDpEvent) for event in events):
        noises = [event.noise_multiplier for event in events]
        signal = math.hypot(*(1 / noise for noise in noises)) if min(noises) else math.inf
        if signal > _MOST_SIGNAL:
            return math.inf
        root = float(get_epsilon_gaussian(1 / signal, delta))
        return root * (1 + _ABOVE_ROOT) + _ABOVE_ROOT if root else 0.0
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415 - takes a second to import

    accountant = PLDAccountant(value_discretization_interval=grid)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=64)
def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the smallest noise multiplier, to 1 %, for ``steps`` steps in total.

    Computed once for the total of a run, never a round at a time.

    Args:
        epsilon: target of the whole run, at most 1000.
        delta: in (0, 1).
        sampling_rate: Poisson rate q in (0, 1].
        steps: private steps over all rounds, at least 1.

    Raises:
        UserError: an argument is out of range, or no noise up to 10^6 meets the budget.

    Guarantee:
        ``epsilon_spent`` of the result is at most ``epsilon``.
    """
    check_budget(epsilon, delta)
    if steps < 1:
        raise UserError(f"noise is computed for at least 1 private step, not {steps}")
    search_grid = _SEARCH_GRID if epsilon >= 1 else REPORT_GRID

    def overspends(noise_multiplier: float, grid: float = search_grid) -> bool:
        spent = epsilon_spent(noise_multiplier, sampling_rate, steps, delta, grid=grid)
        return spent > epsilon

    check_mechanism(1.0, sampling_rate)
    high = smallest_noise(overspends, math.sqrt(steps) * sampling_rate)
    if high is None:
        raise UserError(
            f"no noise meets epsilon {epsilon} at delta {delta} over {steps} steps; "
            "ask for more epsilon or fewer steps"
        )
    while overspends(high, REPORT_GRID):
        high *= 1 + _TOLERANCE
    return high


def smallest_noise(overspends: Callable[[float], bool], start: float) -> float | None:
    """Return the least noise, to a thousandth, that does not overspend; None if all up to 10^6 do.

    Args:
        overspends: of a noise; what overspends does so with less noise too.
        start: where to begin. Near the answer is fast: epsilons far above a target are slow.
    """
    high = max(1.0, start)
    while overspends(high):
        high *= 2
        if high > _MOST_NOISE:
            return None
    low = high / 2
    while not overspends(low):
        low, high = low / 2, low
    while high / low > 1 + _TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if overspends(middle) else (low, middle)
    return high
