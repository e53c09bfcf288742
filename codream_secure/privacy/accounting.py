"""Accounting of private releases: what each is, and what they cost together.

Every epsilon comes from dp_accounting: from its PLD accountant, or in closed form where no batch
is sampled. Sums with shares of discrete Gaussian noise are accounted as the continuous Gaussian
that bounds them (docs/accounting.md). For Skellam noise, Renyi DP (Mironov, CSF 2017) gives
epsilon; that is 7 to 15 % looser. The GDP accountant is never used, because
it under-reports epsilon by up to 12 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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

Unit = Literal["example", "client"]
Accountant = Literal["pld", "rdp"]
NoiseSource = Literal["os", "seeded"]

# The sensitivity of a gradient with one parameter in the grid of `integer_gradients`.
LEAST_L2 = 16

ADJACENCY = (
    "add or remove one training example of one client; clients' data are disjoint, so the "
    "guarantee holds for each client and epsilon is the largest"
)
# The same unit where all clients' data go into one sum.
EXAMPLES = "add or remove one training example of one client"
CLIENTS = "add or remove one client: in its place is one that contributes zeros"

# Width of the grid on which the privacy loss is discretized for every epsilon that is reported.
REPORT_GRID = 1e-4
# Time and memory of the PLD accountant grow with epsilon; far below this bound epsilon protects
# nobody any more.
_LARGEST_EPSILON = 1000.0
# Above this bound by Renyi DP, which is then nearly tight, PLD would take memory without end.
_BEYOND_USE = 2 * _LARGEST_EPSILON
# dp_accounting finds the root of the closed form to 1e-12. A thousand times as much is added, so
# that the result is an upper bound.
_ABOVE_ROOT = 1e-9
# Above this ratio of sensitivity to noise epsilon exceeds 10^11, and the root is not found.
_MOST_SIGNAL = 1e6
# The bound for Skellam noise is proven for integer orders only.
_ORDERS = np.array([*range(2, 65), *range(72, 257, 8), 320, 384, 512, 768, 1024], dtype=np.float64)


def check_budget(epsilon: float, delta: float) -> None:
    """Refuse a budget that is out of range.

    Raises:
        UserError: epsilon is not in (0, 1000], or delta not inside (0, 1).
    """
    if not 0 < epsilon <= _LARGEST_EPSILON:
        raise UserError(f"epsilon must be above 0 and at most {_LARGEST_EPSILON:g}, not {epsilon}")
    check_delta(delta)


def check_mechanism(noise_multiplier: float, sampling_rate: float) -> None:
    """Refuse parameters that no Poisson-sampled Gaussian mechanism has.

    Raises:
        UserError: the noise multiplier is not positive and finite, or the sampling rate is not in
            (0, 1].
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise UserError(f"the noise multiplier must be positive and finite, not {noise_multiplier}")
    if not 0 < sampling_rate <= 1:
        raise UserError(f"the sampling rate must be above 0 and at most 1, not {sampling_rate}")


def check_delta(delta: float) -> None:
    """Raise UserError unless ``delta`` is inside (0, 1)."""
    if not 0 < delta < 1:
        raise UserError(f"delta must be between 0 and 1, not {delta}")


def check_meaning(delta: float, units: int) -> None:
    """Refuse a delta under which a mechanism may publish somebody's data.

    A mechanism that publishes one of ``units`` examples, drawn at random, is (0, 1 / units)-DP.

    Args:
        delta: of the guarantee.
        units: how many examples or clients are protected; public.

    Raises:
        UserError: delta is not below 1 / units.
    """
    if delta * units >= 1:
        raise UserError(
            f"--dp-delta {delta:g} allows one of {units} to be published: give it less than "
            f"{1 / units:.2g}, better a tenth of that"
        )


def dpsgd_epsilon(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    *,
    grid: float = REPORT_GRID,
) -> float:
    """Return epsilon of ``steps`` DP-SGD steps at ``delta``, by PLD.

    Args:
        noise_multiplier: standard deviation of the noise, divided by the clip.
        sampling_rate: Poisson rate q in (0, 1].
        steps: private steps taken; 0 steps cost nothing.
        delta: in (0, 1).
        grid: width of the grid for the privacy loss.

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
    if sampling_rate < 1:
        made = [training(noise_multiplier, sampling_rate, steps)]
        if (bound := rdp_epsilon(divergences(made), delta)) > _BEYOND_USE:
            return bound
    return epsilon_of([dpsgd_event(noise_multiplier, sampling_rate, steps)], delta, grid=grid)


def epsilon_of(events: Sequence[Any], delta: float, *, grid: float = REPORT_GRID) -> float:
    """Return epsilon of events together, by their privacy loss distribution (PLD).

    Args:
        events: of dp_accounting, at least one.
        delta: in (0, 1).
        grid: width of the grid for the privacy loss.

    Guarantee:
        An upper bound. In closed form it is the root that was found plus 1e-9, both relative and
        absolute; on a grid dp_accounting rounds the privacy loss up.
    """
    from dp_accounting import GaussianDpEvent, get_epsilon_gaussian  # noqa: PLC0415 - slow

    noises = [event.noise_multiplier for event in events if isinstance(event, GaussianDpEvent)]
    if 0 in noises:
        return math.inf
    if len(noises) == len(events):
        # Gaussian releases together are one Gaussian release: 1 / z^2 adds up. Its epsilon has a
        # closed form (Balle and Wang, ICML 2018), hundreds of times faster than a grid.
        signal = math.hypot(*(1 / noise for noise in noises))
        if signal > _MOST_SIGNAL:
            return math.inf
        root = float(get_epsilon_gaussian(1 / signal, delta))
        return root * (1 + _ABOVE_ROOT) + _ABOVE_ROOT if root else 0.0
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415 - takes a second to import

    accountant = PLDAccountant(value_discretization_interval=grid)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of private release, and how often it was made.

    Attributes:
        name: what was released.
        unit: whom the noise protects.
        adjacency: which data sets are neighbours, in words.
        mechanism: with the noise that was really there.
        steps: how often it was made, aborted attempts included.
    """

    name: str
    unit: Unit
    adjacency: str
    mechanism: Mechanism
    steps: int = 1


@dataclass(frozen=True, slots=True)
class PrivacyCost:
    """What releases cost together at one delta.

    Attributes:
        epsilon: the smaller one of the bounds by PLD and by Renyi DP.
        accountant: which of the two that is.
        rdp: the bound by Renyi DP.
    """

    epsilon: float
    accountant: Accountant
    rdp: float


def privacy_cost(
    releases: Sequence[Release], delta: float, *, grid: float = REPORT_GRID
) -> PrivacyCost:
    """Return the epsilon of releases about the same data.

    Args:
        releases: all of one unit and one adjacency.
        delta: in (0, 1).
        grid: width of the grid for the privacy loss.

    Raises:
        UserError: ``delta`` is out of range.
        ValueError: the units differ, so that there is no single statement about all releases.

    Guarantee:
        An upper bound for the composition in any order, also where later releases were chosen by
        the results of earlier ones.
    """
    check_delta(delta)
    made = [release for release in releases if release.steps]
    if len({release.unit for release in made}) > 1:
        raise ValueError("releases of different units")
    if not made:
        return PrivacyCost(0.0, "pld", 0.0)
    rdp = rdp_epsilon(divergences(made), delta)
    events = [release.mechanism.event(release.steps) for release in made]
    if rdp > _BEYOND_USE or any(event is None for event in events):
        return PrivacyCost(rdp, "rdp", rdp)
    # The events' probabilities are within e^slack of the releases': delta(epsilon) of these is at
    # most e^slack times delta(epsilon - 2 slack) of those.
    slack = sum(release.steps * release.mechanism.slack for release in made)
    pld = epsilon_of(events, delta * math.exp(-slack), grid=grid) + 2 * slack
    return PrivacyCost(pld, "pld", rdp) if pld <= rdp else PrivacyCost(rdp, "rdp", rdp)


def divergences(releases: Sequence[Release]) -> NDArray[np.float64]:
    """Return the Renyi divergence of all releases together, one number for each order."""
    parts = [release.mechanism.rdp(release.steps, _ORDERS) for release in releases]
    return np.asarray(sum(parts))


def rdp_epsilon(total: NDArray[np.float64], delta: float) -> float:
    """Return the epsilon at ``delta`` that Renyi divergences, as `divergences` returns, imply."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon  # noqa: PLC0415

    if not np.isfinite(total).any():
        return math.inf
    epsilon, _ = compute_epsilon(_ORDERS, total, delta)
    return float(epsilon)


def training(
    noise_multiplier: float, sampling_rate: float, steps: int, *, integers: bool = False
) -> Release:
    """Return the private training of one client as a release.

    Args:
        noise_multiplier: standard deviation of the noise, divided by the clip.
        sampling_rate: Poisson rate q in (0, 1].
        steps: private steps.
        integers: whether the noise is discrete Gaussian (at full batch only).
    """
    return Release(
        name="local training",
        unit="example",
        adjacency=ADJACENCY,
        mechanism=training_mechanism(noise_multiplier, sampling_rate, integers=integers),
        steps=steps,
    )


def training_mechanism(
    noise_multiplier: float, sampling_rate: float, *, integers: bool = False
) -> Mechanism:
    """Return the mechanism of one private training step; arguments as for `training`."""
    if integers:
        # One share, in the coarsest grid that `GradientGrid` has: one of more parameters is finer,
        # so that less of its variance is given away. No model has 2^40 parameters.
        return DiscreteGaussianSum(
            LEAST_L2, LEAST_L2, 1 << 40, (noise_multiplier * LEAST_L2) ** 2, 1
        )
    return SampledGaussian(noise_multiplier, sampling_rate)
