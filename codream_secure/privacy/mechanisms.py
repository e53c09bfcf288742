"""The mechanisms that the accounting knows: what one release costs, as PLD event or by Renyi DP."""

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from codream_secure.aggregation.requests import NoiseKind

# r^2 of docs/accounting.md: the variance that is given away for the bound on sums of shares.
ROUNDING = 4.0
# The least variance of a share for that bound.
LEAST_VARIANCE = 2 * ROUNDING
# h of docs/accounting.md, 1.0e-34: how far the sum of exp(-(k - y)^2 / (2 r^2)) over all integers k
# is from a constant, whatever y is.
_GAP = 2.0001 * math.exp(-2 * math.pi**2 * ROUNDING)


class _Mechanism(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """A mechanism as summaries store it; ``kind`` says which one it is."""

    @property
    def slack(self) -> float:
        """How far one release is from that of `event`, as a ratio of probabilities e^slack."""
        return 0.0


class SampledGaussian(_Mechanism, frozen=True, tag="sampled gaussian"):
    """One step of DP-SGD: the Poisson-sampled Gaussian mechanism (Abadi et al., CCS 2016).

    Attributes:
        noise_multiplier: standard deviation of the noise, divided by the sensitivity.
        sampling_rate: the probability q in (0, 1] with which an example takes part.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0

    def event(self, steps: int) -> Any:  # noqa: ANN401 - dp_accounting's type
        """Return the event of ``steps`` steps for dp_accounting."""
        return dpsgd_event(self.noise_multiplier, self.sampling_rate, steps)

    def rdp(self, steps: int, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the Renyi divergence of ``steps`` steps at each order, from dp_accounting."""
        from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415 - takes a second to import

        accountant = RdpAccountant(orders)
        accountant.compose(self.event(steps))
        return np.asarray(accountant.rdp)


class SkellamSum(_Mechanism, frozen=True, tag="skellam sum"):
    """A sum of integer vectors with Skellam noise.

    Source: Agarwal, Kairouz, Liu, The Skellam Mechanism, NeurIPS 2021, Theorem 3.5. A sum of
    independent Skellam variables is a Skellam variable: only the total variance matters.

    Attributes:
        l2, l1: the sensitivity: by how much one unit can change the sum, in integers.
        variance: of the noise in one coordinate of the sum: that of all secret shares together.
    """

    l2: float
    l1: float
    variance: float

    def event(self, steps: int) -> None:
        """Return None: dp_accounting has no event for this noise, so RDP is used."""

    def rdp(self, steps: int, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the bound on the Renyi divergence of ``steps`` releases at each order.

        For one release, order a and variance v it is
        a l2^2 / (2 v) + min(((2 a - 1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2 v)).

        Args:
            steps: releases.
            orders: integers of at least 2; the theorem is not proven for others.
        """
        v, squared = self.variance, self.l2**2
        if v <= 0:
            return np.full_like(orders, math.inf)
        near = ((2 * orders - 1) * squared + 6 * self.l1) / (4 * v**2)
        return steps * (orders * squared / (2 * v) + np.minimum(near, 3 * self.l1 / (2 * v)))


class DiscreteGaussianSum(_Mechanism, frozen=True, tag="discrete gaussian sum"):
    """A sum of integer vectors with shares of discrete Gaussian noise.

    Guarantee:
        With shares of variance v >= 8 the sum of n of them is as private as continuous Gaussian
        noise of variance n v - 4, up to `slack`. Source and proof: docs/accounting.md. Test: exact
        sums in tests/codream_secure/privacy/test_mechanisms.py. Smaller shares have no bound here.

    Attributes:
        l2, l1: the sensitivity: by how much one unit can change the sum, in integers.
        dimension: coordinates.
        variance: the parameter sigma^2 of one share.
        shares: secret shares of noise that are in the sum.
    """

    l2: float
    l1: float
    dimension: int
    variance: float
    shares: int

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the continuous noise that bounds the sum, over ``l2``; 0: none."""
        if self.shares < 1 or self.variance < LEAST_VARIANCE:
            return 0.0
        return math.sqrt(self.shares * self.variance - ROUNDING) / self.l2

    @property
    def slack(self) -> float:
        """How far, as a ratio of probabilities e^slack, one sum is from the bounding mechanism."""
        return (2 * self.shares + 2) * self.dimension * _GAP

    def event(self, steps: int) -> Any:  # noqa: ANN401 - dp_accounting's type
        """Return the event of the bounding mechanism; `slack` comes on top."""
        return dpsgd_event(self.noise_multiplier, 1.0, steps)

    def rdp(self, steps: int, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the Renyi divergence of ``steps`` releases at each order of at least 2.

        At order a the slack s adds at most s (2 a - 1) / (a - 1) <= 3 s.
        """
        if not self.noise_multiplier:
            return np.full_like(orders, math.inf)
        return steps * (orders / (2 * self.noise_multiplier**2) + 3 * self.slack)


Mechanism = SampledGaussian | SkellamSum | DiscreteGaussianSum


def integer_mechanism(
    noise: "NoiseKind", l2: float, length: int, variance: float, shares: int
) -> SkellamSum | DiscreteGaussianSum:
    """Return the mechanism of an integer sum with shares of noise.

    Args:
        noise: kind of noise.
        l2: sensitivity of the sum in the Euclidean norm, in integers.
        length: coordinates.
        variance: of one share.
        shares: secret shares in the sum.
    """
    # For every vector |x|_1 <= sqrt(length) |x|_2 (Cauchy-Schwarz). For a vector of integers also
    # |x|_1 <= |x|_2^2, because |k| <= k^2 for every integer k.
    l1 = min(math.sqrt(length) * l2, l2**2)
    if noise == "skellam":
        return SkellamSum(float(l2), l1, float(shares * variance))
    return DiscreteGaussianSum(float(l2), l1, length, float(variance), shares)


def dpsgd_event(noise_multiplier: float, sampling_rate: float, steps: int) -> Any:  # noqa: ANN401
    """Return the event of ``steps`` DP-SGD steps for dp_accounting (Abadi et al., CCS 2016)."""
    from dp_accounting import dp_event  # noqa: PLC0415 - takes a second to import

    if sampling_rate == 1:
        # T Gaussian releases of full batches are exactly one Gaussian release with the noise
        # multiplier z / sqrt(T).
        return dp_event.GaussianDpEvent(noise_multiplier / math.sqrt(steps))
    step = dp_event.PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent(noise_multiplier))
    return dp_event.SelfComposedDpEvent(step, steps)
