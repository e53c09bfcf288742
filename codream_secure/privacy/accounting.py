"""Accounting of DP-SGD: noise for a budget, epsilon of what was run, and the budget's keeper.

All figures come from dp_accounting: its PLD accountant, or where no batch is sampled the closed
form of the same distribution. RDP is 7-15 % looser; the GDP accountant under-reports by up to 12 %
and is refused.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.errors import UserError
from codream_secure.privacy.mechanisms import (
    DiscreteGaussianSum,
    Mechanism,
    SampledGaussian,
    dpsgd_event,
)

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


Unit = Literal["example", "client"]


Accountant = Literal["pld", "rdp"]


NoiseSource = Literal["os", "seeded"]


ADJACENCY = (
    "add or remove one training example of one client; clients' data are disjoint, so the "
    "guarantee holds for each client and epsilon is the largest"
)


# The same where all clients' data goes into one sum.
EXAMPLES = "add or remove one training example of one client"


CLIENTS = "add or remove one client: in its place is one that contributes zeros"


# Skellam's bound is proven for integer orders.
_ORDERS = np.array([*range(2, 65), *range(72, 257, 8), 320, 384, 512, 768, 1024], dtype=np.float64)


GROUPS = (2, 3, 5)


_GROUP_STEPS = 40


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of private release, and how often it was made.

    Attributes:
        name: what was released.
        unit: whom it protects.
        adjacency: which data sets are neighbours, in words.
        mechanism: with the noise that was there.
        steps: how often, aborted attempts included.
    """

    name: str
    unit: Unit
    adjacency: str
    mechanism: Mechanism
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """What releases cost together at one delta.

    Attributes:
        epsilon: the smaller of both bounds.
        accountant: whose that is.
        rdp: the bound by Renyi DP.
    """

    epsilon: float
    accountant: Accountant
    rdp: float


def cost(releases: Sequence[Release], delta: float, *, grid: float = REPORT_GRID) -> Cost:
    """Return the epsilon of releases about the same data.

    Args:
        releases: of one unit and one adjacency.
        delta: in (0, 1).
        grid: discretization of the privacy loss.

    Raises:
        UserError: delta is out of range.
        ValueError: releases of different units do not compose into one statement.

    Guarantee:
        An upper bound for the composition, in whatever order and however chosen the later were.
    """
    check_delta(delta)
    made = [release for release in releases if release.steps]
    if len({release.unit for release in made}) > 1:
        raise ValueError("releases of different units")
    if not made:
        return Cost(0.0, "pld", 0.0)
    rdp = _rdp_epsilon(_divergences(made), delta)
    events = [release.mechanism.event(release.steps) for release in made]
    if any(event is None for event in events):
        return Cost(rdp, "rdp", rdp)
    pld = epsilon_of(events, delta, grid=grid)
    return Cost(pld, "pld", rdp) if pld <= rdp else Cost(rdp, "rdp", rdp)


def _divergences(releases: Sequence[Release]) -> NDArray[np.float64]:
    """Return the Renyi divergence of all releases together, at every order of `_ORDERS`."""
    parts = [release.mechanism.rdp(release.steps, _ORDERS) for release in releases]
    return np.asarray(sum(parts))


def _rdp_epsilon(divergences: NDArray[np.float64], delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon  # noqa: PLC0415

    if not np.isfinite(divergences).any():
        return math.inf
    epsilon, _ = compute_epsilon(_ORDERS, divergences, delta)
    return float(epsilon)


def group_epsilon(releases: Sequence[Release], delta: float, size: int) -> float:
    """Return epsilon at the same delta for ``size`` units together; infinite if none is found.

    Where no batch is sampled, ``size`` units change a sum by ``size`` times the sensitivity: that
    is composed as it stands. Else by group privacy of (epsilon', delta'): size * epsilon' at
    delta' (e^(size epsilon') - 1) / (e^epsilon' - 1), with the delta' that makes this delta
    (Vadhan 2017, Lemma 2.2); exact values are smaller.

    Args:
        releases: as in `cost`.
        delta: of the result.
        size: how many units change, at least 1.
    """
    made = [release for release in releases if release.steps]
    together = [_together(release, size) for release in made]
    if None not in together:
        return cost([release for release in together if release], delta).epsilon

    # Divergences do not depend on delta; to compute them takes nearly all of the time.
    divergences = _divergences(made)

    def spent(log_delta: float) -> float:
        return log_delta + _log_ratio(_rdp_epsilon(divergences, math.exp(log_delta)), size)

    low, high = math.log(sys.float_info.min), math.log(delta)
    if spent(low) > math.log(delta):
        return math.inf
    for _ in range(_GROUP_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) <= math.log(delta) else (low, middle)
    return size * _rdp_epsilon(divergences, math.exp(low))


def _together(release: Release, size: int) -> Release | None:
    """Return the release as ``size`` units see it that change; None where batches are sampled."""
    found = release.mechanism
    mechanism: Mechanism
    if isinstance(found, SampledGaussian):
        if found.sampling_rate != 1:
            return None
        mechanism = SampledGaussian(found.noise_multiplier / size)
    else:
        mechanism = msgspec.structs.replace(found, l2=size * found.l2, l1=size * found.l1)
    return msgspec.structs.replace(release, mechanism=mechanism)


def _log_ratio(epsilon: float, size: int) -> float:
    """Return the logarithm of (e^(size epsilon) - 1) / (e^epsilon - 1)."""
    if epsilon <= 0:
        return math.log(size)
    if not math.isfinite(epsilon):
        return math.inf
    return _log_expm1(size * epsilon) - _log_expm1(epsilon)


def _log_expm1(x: float) -> float:
    return x + math.log(-math.expm1(-x))


class Guarantee(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An (epsilon, delta) guarantee together with all that it was computed from.

    Attributes:
        unit, adjacency: whom it protects, and which data sets are neighbours.
        epsilon, accountant: the smaller bound and whose it is.
        rdp_epsilon: the bound by Renyi DP.
        noise_source: "os", or "seeded" for experiments only.
        steps: private training steps charged to the client that took most.
        noise_multiplier, sampling_rate, clip: of private training.
        noise_colluders: clients that may tell the server their noise; None: all noise is a client's
            own, and it does not matter.
        groups: epsilon at the same delta of so many units together; None: beyond any use.
        releases: what was released.
    """

    unit: Unit
    adjacency: str
    epsilon: float
    delta: float
    accountant: Accountant
    rdp_epsilon: float
    noise_source: NoiseSource
    steps: int
    noise_multiplier: float
    sampling_rate: float
    clip: float
    noise_colluders: int | None
    groups: dict[int, float | None]
    releases: tuple[Release, ...]


def group_epsilons(releases: Sequence[Release], delta: float) -> dict[int, float | None]:
    """Return `group_epsilon` for `GROUPS`; None where it is beyond any use."""
    found = {size: group_epsilon(releases, delta, size) for size in GROUPS}
    return {size: e if math.isfinite(e) else None for size, e in found.items()}


def training(
    noise_multiplier: float, sampling_rate: float, steps: int, *, integers: bool = False
) -> Release:
    """Return the release that private training of one client is.

    Args:
        noise_multiplier: standard deviation of the noise over the clip.
        sampling_rate: Poisson rate.
        steps: how many.
        integers: with discrete Gaussian noise, at full batch.
    """
    mechanism: Mechanism = SampledGaussian(noise_multiplier, sampling_rate)
    if integers:
        # In units of the sensitivity; one share alone has no gap to pay for.
        mechanism = DiscreteGaussianSum(1.0, 1.0, 1, noise_multiplier**2, 1)
    return Release(
        name="local training", unit="example", adjacency=ADJACENCY, mechanism=mechanism, steps=steps
    )


@lru_cache(maxsize=64)
def training_noise(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    others: tuple[Release, ...] = (),
    *,
    integers: bool = False,
) -> float:
    """Return the smallest noise multiplier, to 1 %, with which training and others fit a budget.

    Computed once for the total of a run, never a round at a time.

    Args:
        epsilon: target of the whole run, others included; at most 1000.
        delta: in (0, 1).
        sampling_rate: Poisson rate q in (0, 1].
        steps: private steps over all rounds, at least 1.
        others: what is released about the same data besides.
        integers: as in `training`.

    Raises:
        UserError: an argument is out of range, or no noise up to 10^6 meets the budget.

    Guarantee:
        `cost` of all together is at most ``epsilon``.
    """
    if not others and not integers:
        return noise_multiplier_for(epsilon, delta, sampling_rate, steps)
    check_budget(epsilon, delta)
    check_mechanism(1.0, sampling_rate)

    def overspends(noise: float) -> bool:
        tried = training(noise, sampling_rate, steps, integers=integers)
        return cost([tried, *others], delta).epsilon > epsilon

    found = smallest_noise(overspends, math.sqrt(steps) * sampling_rate)
    if found is None:
        names = ", ".join(release.name for release in others)
        raise UserError(
            f"epsilon {epsilon:g} leaves nothing for training beside {names}; ask for more, or "
            "give these less"
        )
    return found


def integer_variance(
    epsilon: float, delta: float, mechanism: Callable[[float], Mechanism], *, steps: int = 1
) -> float:
    """Return the least variance of a sum's noise, to 1 %, with which its releases fit a budget.

    Args:
        epsilon: of these releases alone, at most 1000.
        delta: in (0, 1).
        mechanism: of a total variance in units of the squared sensitivity.
        steps: how many releases.

    Returns:
        The total variance in units of the squared sensitivity.

    Raises:
        UserError: an argument is out of range, or no variance meets the budget.
    """
    check_budget(epsilon, delta)

    def overspends(multiplier: float) -> bool:
        tried = mechanism(multiplier**2)
        release = Release(name="", unit="example", adjacency="", mechanism=tried, steps=steps)
        return cost([release], delta).epsilon > epsilon

    found = smallest_noise(overspends, math.sqrt(steps))
    if found is None:
        raise UserError(f"no noise meets epsilon {epsilon:g} at delta {delta:g}")
    return found**2
