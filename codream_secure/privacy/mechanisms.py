"""The mechanisms that accounting knows, as privacy events."""

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class _Mechanism(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Summaries hold mechanisms as they are; ``kind`` says which one it is."""


class SampledGaussian(_Mechanism, frozen=True, tag="sampled gaussian"):
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


class SkellamSum(_Mechanism, frozen=True, tag="skellam sum"):
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


class DiscreteGaussianSum(_Mechanism, frozen=True, tag="discrete gaussian sum"):
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


def dpsgd_event(noise_multiplier: float, sampling_rate: float, steps: int) -> Any:  # noqa: ANN401
    """Return dp_accounting's event of ``steps`` DP-SGD steps (Abadi et al. 2016)."""
    from dp_accounting import dp_event  # noqa: PLC0415 - takes a second to import

    if sampling_rate == 1:
        # T Gaussian releases of full batches are one Gaussian release with less noise, exactly.
        return dp_event.GaussianDpEvent(noise_multiplier / math.sqrt(steps))
    step = dp_event.PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent(noise_multiplier))
    return dp_event.SelfComposedDpEvent(step, steps)
