"""Sums of integer vectors that exist only with noise: the terms, one client's part, the total.

Every client adds its share of integer noise before it masks its vector. So the sum is private
against the server too (Kairouz, Liu, Steinke, ICML 2021; Agarwal, Kairouz, Liu, NeurIPS 2021).

Why integers: masks are added modulo a prime, so what is summed must be integers. Rounding real
noise would give a distribution that no theorem covers. With integer noise the masked sum is
exactly the sum of all vectors and all shares of noise, because no sum is as large as the modulus.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import NoiseKind, NoisyTerms
from codream_secure.errors import UserError
from codream_secure.privacy.integer_noise import IntegerNoise
from codream_secure.privacy.mechanisms import DiscreteGaussianSum, SkellamSum, integer_mechanism
from protocols.params import MAX_INPUT
from protocols.primitives.keys import hkdf


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySum:
    """The public terms of one sum.

    Attributes:
        length: coordinates.
        l2: by how much one unit of privacy changes a client's vector at most, in the Euclidean
            norm.
        variance: of one client's share of noise, an integer.
        cap: the largest magnitude of a coordinate of one client's vector; larger ones are cut.
        noise: kind of noise.
    """

    length: int
    l2: int
    variance: int
    cap: int
    noise: NoiseKind = "gaussian"

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
            largest: magnitude that a coordinate of one client's vector may have. ``cap`` is
                smaller where less fits, which costs no privacy.
            clients: number of clients in the sum at most.

        Raises:
            UserError: the noise of so many clients does not fit 32 bits.
        """
        # Half of what one client may send, as the code range is [-limit, limit] plus an offset.
        # The sum of all codes stays 2^24 below 2^32, so that a field lies between the two.
        limit = (min(MAX_INPUT, ((1 << 32) - (1 << 24)) // clients) - 1) // 2
        bound = IntegerNoise.of(noise, variance).bound
        if bound >= limit:
            raise UserError(
                f"the noise of {clients} clients does not fit 32 bits: ask for more epsilon"
            )
        return cls(
            length=length,
            l2=l2,
            variance=variance,
            cap=min(largest, limit - bound),
            noise=noise,
        )

    @property
    def offset(self) -> int:
        """What a client adds to every coordinate, so that its codes are not negative."""
        return self.cap + IntegerNoise.of(self.noise, self.variance).bound

    @property
    def maximum(self) -> int:
        """The largest code. A clipped coordinate plus noise always lies in 0..maximum."""
        return 2 * self.offset

    def codes(self, vector: NDArray[np.int64], key: bytes) -> NDArray[np.uint32]:
        """Return one client's part: its vector with its share of noise.

        Args:
            vector: int64, shape (length,).
            key: 32 secret bytes that key the noise, used for this one sum only.

        Returns:
            uint32, shape (length,), in 0..maximum.

        Guarantee:
            Cutting coordinates at ``cap`` brings two vectors no further apart, and the noise has
            ``variance`` in every coordinate. The sum is private as `mechanism` says.
        """
        kept = vector.clip(-self.cap, self.cap)
        noise = IntegerNoise.of(self.noise, self.variance).draw(self.length, key)
        return (kept + noise + self.offset).astype(np.uint32)

    def answer(
        self, vector: NDArray[np.int64], secret: bytes, step: int, request: bytes
    ) -> NDArray[np.uint32]:
        """Return one client's part of the sum that a request asks for.

        Args:
            vector: as for `codes`.
            secret: 32 bytes of this client, from which the noise of all its sums is derived.
            step: of the protocol.
            request: digest of the request that is answered.

        Guarantee:
            As `codes`. The same request in the same step gets the same noise, so that a message
            that is sent again has the same bytes. Every other request gets other noise, so that
            the difference of two answers never shows vectors without noise.
        """
        return self.codes(vector, hkdf(secret, "noise", step.to_bytes(8, "big"), request))

    def decode(self, totals: NDArray[np.uint32], count: int) -> NDArray[np.float64]:
        """Return the noisy sum of ``count`` clients' vectors, float64, shape (length,)."""
        return totals.astype(np.float64) - count * self.offset

    def mechanism(self, shares: int) -> SkellamSum | DiscreteGaussianSum:
        """Return the mechanism of one sum for the accounting.

        Args:
            shares: secret shares in the sum: only their honest owners know them.
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
