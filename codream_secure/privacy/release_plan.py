"""Noisy sums of all clients that are released again and again: how often, and with what noise."""

import math
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import NoisyTerms
from codream_secure.config.resolved import PrivateRun
from codream_secure.errors import RequestRefused
from codream_secure.privacy.accounting import (
    Guarantee,
    Release,
    Unit,
    cost,
    group_epsilons,
    integer_variance,
)
from codream_secure.privacy.colluders import hidden_shares, noise_colluders
from codream_secure.privacy.noisy_sum import NoisySum, integer_mechanism, noisy_terms
from codream_secure.runtime.seeds import derive_bytes
from protocols.primitives.keys import hkdf

if TYPE_CHECKING:
    from codream_secure.privacy.mechanisms import Mechanism


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What is released: one vector a client, of which one unit changes at most so much.

    Attributes:
        name: of the release.
        unit, adjacency: whom it protects, and which data sets are neighbours.
        length: coordinates.
        l2: sensitivity, in integers.
        clip: the same in real units.
        largest: magnitude that a coordinate of one client's vector may have.
    """

    name: str
    unit: Unit
    adjacency: str
    length: int
    l2: int
    clip: float
    largest: int


@dataclass(slots=True, eq=False)
class NoisyReleases:
    """One client's side: the terms it answers to, and how often.

    Attributes:
        terms: the only ones it takes part under.
        most: sums that it takes part in, aborted ones included.
        key: 32 secret bytes, from which every sum's noise follows.
        taken: sums it has taken part in.
    """

    terms: NoisySum
    most: int
    key: bytes = field(repr=False)
    taken: int = 0

    def take(self, asked: NoisyTerms) -> None:
        """Charge one sum, before anything is computed for it.

        Raises:
            RequestRefused: other terms than those known, or all sums are spent.
        """
        if asked != noisy_terms(self.terms):
            raise RequestRefused("a noisy sum on terms that this client does not know")
        if self.taken >= self.most:
            raise RequestRefused(f"all {self.most} noisy sums are spent")
        self.taken += 1

    def codes(self, vector: NDArray[np.int64], step: int, request: bytes) -> NDArray[np.uint32]:
        """Return the vector with this client's share of noise for a protocol step.

        Args:
            vector: as for `NoisySum.codes`.
            step: of the protocol.
            request: digest of what was asked.

        Guarantee:
            As `NoisySum.codes`; the same request in the same step gets the same noise, so that a
            message sent again is the same bytes, and no other does, so that no two vectors differ
            by what their noise hides.
        """
        key = hkdf(self.key, "noise", step.to_bytes(8, "big"), request)
        return self.terms.codes(vector, key)


class ReleasePlan:
    """A number of noisy sums, fixed with their noise before the first.

    Args:
        config: resolved, with ``dp_eps`` set.
        released: what.
        most: how many sums there can be.

    Raises:
        UserError: no noise meets the budget, or nobody's noise would be secret.

    Guarantee:
        ``most`` sums, each over at least the threshold of clients of which ``noise_colluders`` tell
        the server their noise, cost at most ``dp_eps``. A sum is charged before it is asked
        for; one that is aborted stays charged, and so do those of an interrupted run.

    Attributes:
        terms: of every sum.
        charged: sums so far, in all processes that the run has had.
        journal: told ``charged`` before a sum is asked for; what it stores must outlive a crash.
    """

    def __init__(self, config: PrivateRun, released: Released, most: int) -> None:
        self._privacy, self.released_kind, self.most = config.privacy, released, most
        self.seed = config.run.seed
        self._colluders = noise_colluders(config)
        self._hidden = hidden_shares(config)
        noise, hidden = self._privacy.dp_noise, self._hidden

        def mechanism(ratio: float) -> "Mechanism":
            variance = max(1, math.ceil(ratio * released.l2**2 / hidden))
            return integer_mechanism(noise, released.l2, released.length, variance, hidden)

        budget = self._privacy.dp_eps, self._privacy.dp_delta
        ratio = integer_variance(*budget, mechanism, steps=most)
        self.terms = NoisySum.of(
            length=released.length,
            l2=released.l2,
            variance=max(1, math.ceil(ratio * released.l2**2 / hidden)),
            largest=released.largest,
            clients=config.data.clients,
            noise=noise,
        )
        self.charged = 0
        self.journal: Callable[[int], None] = lambda _: None
        self._shares: Counter[int] = Counter()
        self._sides: list[NoisyReleases] = []

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of a sum's noise over its sensitivity, as planned."""
        return math.sqrt(self._hidden * self.terms.variance) / self.terms.l2

    def reserve(self) -> bool:
        """Charge the next sum; False if there is none left."""
        if self.charged >= self.most:
            return False
        self.journal(self.charged + 1)
        self.charged += 1
        self._shares[self._hidden] += 1
        return True

    def released(self, survivors: int) -> None:
        """Note how many clients' noise the last sum really has."""
        self._shares[self._hidden] -= 1
        self._shares[survivors - self._colluders] += 1

    def restore(self, charged: int) -> None:
        """Take ``charged`` sums as released with the least noise that was planned.

        Raises:
            ValueError: more than there are.
        """
        if not 0 <= charged <= self.most:
            raise ValueError(f"{charged} of {self.most} noisy sums charged")
        self.charged = charged
        self._shares = Counter({self._hidden: charged})
        for side in self._sides:
            side.taken = charged

    def share(self, client: int) -> NoisyReleases:
        """Return a client's side, with a fresh key unless a seed is given."""
        if self.seed is None:
            key = secrets.token_bytes(32)
        else:
            key = derive_bytes(self.seed, self.released_kind.name, client)
        side = NoisyReleases(self.terms, self.most, key)
        self._sides.append(side)
        return side

    def releases(self) -> tuple[Release, ...]:
        """Return what was released, by the noise that was there."""
        kind = self.released_kind
        return tuple(
            Release(
                name=kind.name,
                unit=kind.unit,
                adjacency=kind.adjacency,
                mechanism=self.terms.mechanism(shares),
                steps=count,
            )
            for shares, count in sorted(self._shares.items())
            if count
        )

    def epsilon(self) -> float:
        """Return the epsilon of `guarantee` alone: group privacy takes many times as long."""
        return cost(self.releases(), self._privacy.dp_delta).epsilon

    def guarantee(self) -> Guarantee:
        """Return what all sums so far have cost."""
        releases, delta = self.releases(), self._privacy.dp_delta
        found = cost(releases, delta)
        return Guarantee(
            unit=self.released_kind.unit,
            adjacency=self.released_kind.adjacency,
            epsilon=found.epsilon,
            delta=delta,
            accountant=found.accountant,
            rdp_epsilon=found.rdp,
            noise_source="os" if self.seed is None else "seeded",
            steps=self.charged,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=1.0,
            clip=self.released_kind.clip,
            noise_colluders=self._colluders,
            groups=group_epsilons(releases, delta),
            releases=releases,
        )
