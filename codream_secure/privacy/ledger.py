"""Every private release of a run, and what they cost together.

A release is an immutable event with the noise that was really there. Composition is left to
dp_accounting: PLD where all events are Gaussian, Renyi DP (Mironov 2017) for everything, since
integer noise has a published RDP curve and no privacy loss distribution there. Reported is the
smaller of the two bounds that apply.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import (
    REPORT_GRID,
    check_budget,
    check_delta,
    check_mechanism,
    dpsgd_event,
    epsilon_of,
    noise_multiplier_for,
    smallest_noise,
)

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


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """Steps of the Poisson-sampled Gaussian mechanism, sensitivity 1 (DP-SGD, Abadi et al. 2016).

    Attributes:
        noise_multiplier: standard deviation of the noise over the sensitivity.
        sampling_rate: q in (0, 1].
    """

    noise_multiplier: float
    sampling_rate: float = 1.0

    def event(self, steps: int) -> Any:  # noqa: ANN401 - dp_accounting's type
        """Return dp_accounting's event."""
        return dpsgd_event(self.noise_multiplier, self.sampling_rate, steps)

    def rdp(self, steps: int, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the Renyi divergence at every order, by dp_accounting."""
        from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415 - takes a second to import

        accountant = RdpAccountant(orders)
        accountant.compose(self.event(steps))
        return np.asarray(accountant.rdp)


@dataclass(frozen=True, slots=True)
class SkellamSum:
    """A sum of integer vectors with Skellam noise (Agarwal, Kairouz, Liu 2021, Theorem 3.5).

    Attributes:
        l2, l1: what one unit can change the sum by, in integers.
        variance: of the noise of one coordinate that was really there.
    """

    l2: float
    l1: float
    variance: float

    def event(self, steps: int) -> None:
        """Return None: dp_accounting has no such event."""

    def rdp(self, steps: int, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a (l2^2) / (2 v) + min(((2 a - 1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2 v)), a step.

        Valid for integer orders a of at least 2.
        """
        v, squared = self.variance, self.l2**2
        if v <= 0:
            return np.full_like(orders, math.inf)
        near = ((2 * orders - 1) * squared + 6 * self.l1) / (4 * v**2)
        return steps * (orders * squared / (2 * v) + np.minimum(near, 3 * self.l1 / (2 * v)))


@dataclass(frozen=True, slots=True)
class DiscreteGaussianSum:
    """A sum of integer vectors with shares of discrete Gaussian noise.

    Kairouz, Liu, Steinke (The Distributed Discrete Gaussian Mechanism, ICML 2021), Proposition 14.

    Attributes:
        l2, l1: what one unit can change the sum by, in integers.
        dimension: coordinates.
        variance: the parameter of one share.
        shares: how many were really there.
    """

    l2: float
    l1: float
    dimension: int
    variance: float
    shares: int

    def event(self, steps: int) -> None:
        """Return None: dp_accounting has no such event."""

    @property
    def gap(self) -> float:
        """Tau: how far the sum's log-probabilities are from those of one discrete Gaussian."""
        terms = (k / (k + 1) for k in range(1, self.shares))
        return 10 * sum(math.exp(-2 * math.pi**2 * self.variance * term) for term in terms)

    def rdp(self, steps: int, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the least of the proposition's three bounds, a step."""
        total = self.variance * self.shares
        if total <= 0:
            return np.full_like(orders, math.inf)
        tau, d, ratio = self.gap, self.dimension, self.l2 / math.sqrt(total)
        bounds = (
            orders / 2 * ratio**2 + tau * d,
            orders / 2 * (ratio**2 + 2 * tau * self.l1 / math.sqrt(total) + tau**2 * d),
            orders / 2 * (ratio + tau * math.sqrt(d)) ** 2,
        )
        return np.asarray(steps * np.min(bounds, axis=0))


Mechanism = SampledGaussian | SkellamSum | DiscreteGaussianSum


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
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
    rdp = _rdp_epsilon(made, delta)
    events = [release.mechanism.event(release.steps) for release in made]
    if any(event is None for event in events):
        return Cost(rdp, "rdp", rdp)
    pld = epsilon_of(events, delta, grid=grid)
    return Cost(pld, "pld", rdp) if pld <= rdp else Cost(rdp, "rdp", rdp)


def _rdp_epsilon(releases: Sequence[Release], delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon  # noqa: PLC0415

    total = sum(release.mechanism.rdp(release.steps, _ORDERS) for release in releases)
    if not np.isfinite(total).any():
        return math.inf
    epsilon, _ = compute_epsilon(_ORDERS, np.asarray(total), delta)
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

    def spent(log_delta: float) -> float:
        return log_delta + _log_ratio(_rdp_epsilon(made, math.exp(log_delta)), size)

    low, high = math.log(sys.float_info.min), math.log(delta)
    if spent(low) > math.log(delta):
        return math.inf
    for _ in range(_GROUP_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) <= math.log(delta) else (low, middle)
    return size * _rdp_epsilon(made, math.exp(low))


def _together(release: Release, size: int) -> Release | None:
    """Return the release as ``size`` units see it that change; None where batches are sampled."""
    found = release.mechanism
    mechanism: Mechanism
    if isinstance(found, SampledGaussian):
        if found.sampling_rate != 1:
            return None
        mechanism = SampledGaussian(found.noise_multiplier / size)
    else:
        mechanism = replace(found, l2=size * found.l2, l1=size * found.l1)
    return replace(release, mechanism=mechanism)


def _log_ratio(epsilon: float, size: int) -> float:
    """Return the logarithm of (e^(size epsilon) - 1) / (e^epsilon - 1)."""
    if epsilon <= 0:
        return math.log(size)
    if not math.isfinite(epsilon):
        return math.inf
    return _log_expm1(size * epsilon) - _log_expm1(epsilon)


def _log_expm1(x: float) -> float:
    return x + math.log(-math.expm1(-x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
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
