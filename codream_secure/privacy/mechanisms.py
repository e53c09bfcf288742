"""The mechanisms that the accounting knows: what one release costs, as PLD event or by Renyi DP."""

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from codream_secure.aggregation.requests import NoiseKind


class _Mechanism(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """A mechanism as summaries store it; ``kind`` says which one it is."""


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

    Source: Kairouz, Liu, Steinke, The Distributed Discrete Gaussian Mechanism, ICML 2021,
    Proposition 14.

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

    def event(self, steps: int) -> None:
        """Return None: dp_accounting has no event for this noise, so RDP is used."""

    @property
    def gap(self) -> float:
        """Tau: how far the sum's log-probabilities are from those of one discrete Gaussian.

        Discrete Gaussian variables do not add up to one, unlike Skellam variables. The
        difference is 5e-4 for two shares of variance 1, and 4e-6 for two of variance 1.5.
        """
        terms = (k / (k + 1) for k in range(1, self.shares))
        return 10 * sum(math.exp(-2 * math.pi**2 * self.variance * term) for term in terms)

    def rdp(self, steps: int, orders: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the least of the proposition's three bounds, times ``steps``, at each order."""
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
