"""Sums of integer vectors that exist only with noise: the terms, one client's part, the total.

Every client adds its share of integer noise before it masks its vector (DP against the server
itself; Kairouz, Liu, Steinke, ICML 2021; Agarwal, Kairouz, Liu, NeurIPS 2021). What comes out
of the masks is the sum of all vectors and all shares of noise, exactly: nothing wraps around.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import NoiseKind, NoisyTerms
from codream_secure.errors import UserError
from codream_secure.privacy.integer_noise import IntegerNoise
from codream_secure.privacy.mechanisms import DiscreteGaussianSum, SkellamSum
from protocols.params import MAX_INPUT


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySum:
    """The public terms of one sum.

    Attributes:
        length: coordinates.
        l2: what one unit of privacy changes a client's vector by at most, in the Euclidean norm.
        variance: of one client's share of noise, an integer.
        cap: the largest magnitude of a coordinate of one client's vector.
        noise: of which kind.
    """

    length: int
    l2: int
    variance: int
    cap: int
    noise: NoiseKind = "skellam"

    @classmethod
    def of(
        cls, *, length: int, l2: int, variance: int, largest: int, clients: int, noise: NoiseKind
    ) -> "NoisySum":
        """Return terms that fit the protocol: the sum of all clients stays below 2^32.

        Args:
            length: as the attribute.
            l2: as the attribute.
            variance: as the attribute.
            noise: as the attribute.
            largest: magnitude that a coordinate of one client's vector may have; beyond what
                fits it is cut off, which costs no privacy.
            clients: how many.

        Raises:
            UserError: there is no room for the noise of so many clients.
        """
        room = (min(MAX_INPUT, ((1 << 32) - (1 << 24)) // clients) - 1) // 2
        bound = IntegerNoise.of(noise, variance).bound
        if bound >= room:
            raise UserError(
                f"the noise of {clients} clients does not fit 32 bits: ask for more epsilon"
            )
        return cls(
            length=length,
            l2=l2,
            variance=variance,
            cap=min(largest, room - bound),
            noise=noise,
        )

    @property
    def offset(self) -> int:
        """What makes every coordinate of a client's answer non-negative."""
        return self.cap + IntegerNoise.of(self.noise, self.variance).bound

    @property
    def maximum(self) -> int:
        """The largest code. A clipped coordinate plus noise always lies in 0..maximum."""
        return 2 * self.offset

    def codes(self, vector: NDArray[np.int64], key: bytes) -> NDArray[np.uint32]:
        """Return one client's part: its vector with its share of noise.

        Args:
            vector: integers, flat, ``length`` of them.
            key: 32 secret bytes that key the noise, used for this one sum.

        Returns:
            uint32, shape (length,), in 0..maximum.

        Guarantee:
            Cutting coordinates off at ``cap`` brings two vectors no further apart, and the noise
            is of ``variance`` in every coordinate. The sum is private as `mechanism` says.
        """
        kept = vector.clip(-self.cap, self.cap)
        noise = IntegerNoise.of(self.noise, self.variance).draw(self.length, key)
        return (kept + noise + self.offset).astype(np.uint32)

    def decode(self, totals: NDArray[np.uint32], count: int) -> NDArray[np.float64]:
        """Return the noisy sum of ``count`` clients' vectors, float64, shape (length,)."""
        return totals.astype(np.float64) - count * self.offset

    def mechanism(self, shares: int) -> "SkellamSum | DiscreteGaussianSum":
        """Return what the ledger composes.

        Args:
            shares: of noise that were there and that nobody but their honest owners knows.
        """
        return integer_mechanism(self.noise, self.l2, self.length, self.variance, shares)


def noisy_terms(terms: NoisySum) -> NoisyTerms:
    """Return the terms as a request carries them."""
    return NoisyTerms(terms.length, terms.l2, terms.variance, terms.cap, terms.maximum, terms.noise)


def noisy_sum(terms: NoisyTerms) -> NoisySum:
    """Return the terms that a request carries."""
    return NoisySum(
        length=terms.length,
        l2=terms.l2,
        variance=terms.variance,
        cap=terms.cap,
        noise=terms.noise,
    )


def integer_mechanism(
    noise: NoiseKind, l2: float, length: int, variance: float, shares: int
) -> SkellamSum | DiscreteGaussianSum:
    """Return a sum's mechanism.

    Args:
        noise: of which kind.
        l2: sensitivity of the integer sum.
        length: coordinates; integers have an l1 norm of at most sqrt(length) * l2, and of l2^2.
        variance: of one share.
        shares: how many.
    """
    l1 = min(math.sqrt(length) * l2, l2**2)
    if noise == "skellam":
        return SkellamSum(float(l2), l1, float(shares * variance))
    return DiscreteGaussianSum(float(l2), l1, length, float(variance), shares)
