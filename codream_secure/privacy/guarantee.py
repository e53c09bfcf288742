"""The privacy guarantee of a run: epsilon for one unit and for groups, and all its grounds."""

import math
import sys
from collections.abc import Sequence

import msgspec

from codream_secure.privacy.accounting import (
    Accountant,
    NoiseSource,
    Release,
    Unit,
    divergences,
    privacy_cost,
    rdp_epsilon,
)
from codream_secure.privacy.mechanisms import (
    DiscreteGaussianSum,
    Mechanism,
    SampledGaussian,
    SkellamSum,
)

# Sizes of the groups that a guarantee tells an epsilon for.
GROUPS = (2, 3, 5)
# Halvings of the interval of log(delta'): what is left of it is far below the digits shown.
_GROUP_STEPS = 40


class Guarantee(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An (epsilon, delta) guarantee together with all that it was computed from.

    Attributes:
        unit, adjacency: whom it protects, and which data sets are neighbours.
        epsilon, accountant: the smaller one of two bounds, and which accountant it comes from.
        rdp_epsilon: the bound by Renyi DP.
        noise_source: "os", or "seeded" for experiments only.
        steps: private training steps charged to the client that took most.
        noise_multiplier, sampling_rate, clip: of private training.
        noise_colluders: clients that may tell the server their noise; None: all noise is a client's
            own, so that this does not matter.
        groups: epsilon at the same delta of so many units together; None: no finite bound is
            found.
        releases: what was released.
        colluding: epsilon at the same delta if so many clients tell the server their noise, for
            0 up to one less than the threshold; None: no finite bound is found. Empty where no
            noise is shared.
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
    colluding: dict[int, float | None] = {}

    @classmethod
    def of(
        cls,
        releases: tuple[Release, ...],
        delta: float,
        *,
        unit: Unit,
        adjacency: str,
        seed: int | None,
        steps: int,
        noise_multiplier: float,
        sampling_rate: float,
        clip: float,
        noise_colluders: int | None,
        threshold: int = 0,
    ) -> "Guarantee":
        """Return what releases guarantee together; arguments as the attributes.

        Args:
            releases: about the same data, with the noise that was really there.
            delta: in (0, 1).
            unit: of all releases.
            adjacency: of all releases.
            seed: of the noise; None: the noise comes from the operating system.
            steps: as the attribute.
            noise_multiplier: as the attribute.
            sampling_rate: as the attribute.
            clip: as the attribute.
            noise_colluders: as the attribute.
            threshold: clients that every sum has at least; 0: no noise is shared.
        """
        found = privacy_cost(releases, delta)
        return cls(
            unit=unit,
            adjacency=adjacency,
            epsilon=found.epsilon,
            delta=delta,
            accountant=found.accountant,
            rdp_epsilon=found.rdp,
            noise_source="os" if seed is None else "seeded",
            steps=steps,
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            clip=clip,
            noise_colluders=noise_colluders,
            groups=group_epsilons(releases, delta),
            releases=releases,
            colluding=colluding_epsilons(releases, delta, noise_colluders or 0, threshold),
        )


def colluding_epsilons(
    releases: Sequence[Release], delta: float, counted: int, threshold: int
) -> dict[int, float | None]:
    """Return epsilon for every number of clients, below the threshold, that tell their noise.

    Args:
        releases: with as many secret shares as there are if ``counted`` clients tell theirs.
        delta: of the result, in (0, 1).
        counted: how many colluders the releases count on.
        threshold: clients that every sum has at least.
    """
    found: dict[int, float | None] = {}
    if any(isinstance(release.mechanism, SkellamSum) for release in releases):
        return found  # it stores the variance of all shares together
    for colluders in range(threshold):
        told = [_with_shares(release, counted - colluders) for release in releases]
        epsilon = privacy_cost(told, delta).epsilon
        found[colluders] = epsilon if math.isfinite(epsilon) else None
    return found


def _with_shares(release: Release, more: int) -> Release:
    """Return a release with so many more secret shares of noise, if its noise is shared."""
    found = release.mechanism
    if not isinstance(found, DiscreteGaussianSum) or release.name == "local training":
        return release
    mechanism = msgspec.structs.replace(found, shares=found.shares + more)
    return msgspec.structs.replace(release, mechanism=mechanism)


def group_epsilons(releases: Sequence[Release], delta: float) -> dict[int, float | None]:
    """Return `group_epsilon` for each size of `GROUPS`; None where it is infinite."""
    found = {size: group_epsilon(releases, delta, size) for size in GROUPS}
    return {size: e if math.isfinite(e) else None for size, e in found.items()}


def group_epsilon(releases: Sequence[Release], delta: float, size: int) -> float:
    """Return the epsilon at ``delta`` that protects ``size`` units together.

    Args:
        releases: as in `accounting.privacy_cost`.
        delta: of the result, in (0, 1).
        size: how many units change, at least 1.

    Returns:
        An upper bound; infinite if none is found.
    """
    made = [release for release in releases if release.steps]
    together = [_together(release, size) for release in made]
    if None not in together:
        return privacy_cost([release for release in together if release], delta).epsilon
    # Where a batch is sampled, group privacy gives it (Vadhan 2017, Lemma 2.2): from
    # (epsilon', delta') for one unit follow, for ``size`` units, size * epsilon' and
    # delta' (e^(size epsilon') - 1) / (e^epsilon' - 1). Search the delta' that makes the latter
    # delta. The exact epsilon is smaller.
    # Divergences do not depend on delta; computing them takes nearly all of the time.
    total = divergences(made)

    def log_delta_of_group(log_delta: float) -> float:
        return log_delta + _log_ratio(rdp_epsilon(total, math.exp(log_delta)), size)

    low, high = math.log(sys.float_info.min), math.log(delta)
    if log_delta_of_group(low) > math.log(delta):
        return math.inf
    for _ in range(_GROUP_STEPS):
        middle = (low + high) / 2
        fits = log_delta_of_group(middle) <= math.log(delta)
        low, high = (middle, high) if fits else (low, middle)
    return size * rdp_epsilon(total, math.exp(low))


def _together(release: Release, size: int) -> Release | None:
    """Return the release with a whole group's sensitivity; None where batches are sampled.

    Without sampling ``size`` units change a sum by at most ``size`` times the sensitivity.
    """
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
    """Return log(e^x - 1) for x > 0 without overflow."""
    return x + math.log(-math.expm1(-x))
