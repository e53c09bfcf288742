"""Noisy sums over all clients, planned before the first: how many there are, with what noise."""

import math
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import NoisyTerms
from codream_secure.aggregation.settings import AggregationSettings, colluders
from codream_secure.config.resolved import PrivateRun, Resolved
from codream_secure.errors import RequestRefused, UserError
from codream_secure.privacy.accounting import Release, Unit, privacy_cost
from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.privacy.noise_search import share_variance
from codream_secure.privacy.noisy_sum import NoisySum, noisy_terms
from codream_secure.runtime.seeds import derive_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What is released: the sum of one integer vector of every client.

    Attributes:
        name: of the release.
        unit, adjacency: whom the noise protects, and which data sets are neighbours.
        length: coordinates.
        l2: the sensitivity in the Euclidean norm, in integers.
        clip: the sensitivity in real units.
        largest: largest magnitude of a coordinate of one client's vector.
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
    """One client's part in the noisy sums of a run.

    Attributes:
        terms: the only terms under which it takes part.
        budget: counts the sums in which it takes part, aborted ones included.
        key: 32 secret bytes from which the noise of all sums is derived.
    """

    terms: NoisySum
    budget: PrivacyBudget
    key: bytes = field(repr=False)

    def take(self, asked: NoisyTerms) -> None:
        """Charge one sum, before anything is computed for it.

        Raises:
            RequestRefused: the terms are not those known, or all sums are spent.
        """
        self.check(asked)
        self.budget.reserve()

    def check(self, asked: NoisyTerms) -> None:
        """Refuse what `take` would refuse; nothing is charged.

        Raises:
            RequestRefused: as `take`.
        """
        if asked != noisy_terms(self.terms):
            raise RequestRefused("a noisy sum on terms that this client does not know")
        if self.budget.charged >= self.budget.total:
            raise RequestRefused(f"all {self.budget.total} noisy sums are spent")

    def codes(self, vector: NDArray[np.int64], step: int, request: bytes) -> NDArray[np.uint32]:
        """Return `NoisySum.answer` to one request, under these terms and this key."""
        return self.terms.answer(vector, self.key, step, request)


class ReleasePlan(PrivacyBudget):
    """The noisy sums of a run: their number and their noise, fixed before the first.

    Args:
        config: of the run.
        released: what each sum releases.
        total: sums in the whole run.
        epsilon: for all sums together; None: ``dp_eps``.

    Raises:
        UserError: no noise fits the budget, or nobody's noise would be secret.

    Guarantee:
        ``total`` sums cost at most ``epsilon``, if each is over at least the threshold of clients,
        of whom at most ``noise_colluders`` tell the server their noise. A sum is charged before it
        is asked for. An aborted sum stays charged, and so do those of an interrupted run.

    Attributes:
        released_kind: as the argument ``released``.
        terms: of every sum.
        colluders: clients of a sum that may tell the server their noise.
    """

    def __init__(
        self, config: PrivateRun, released: Released, total: int, *, epsilon: float | None = None
    ) -> None:
        super().__init__(total)
        privacy = config.privacy
        self.released_kind, self.seed, self._delta = released, config.run.seed, privacy.dp_delta
        self.colluders = noise_colluders(config)
        # The noise is sized for the worst case: as few clients stay as may, and of their shares
        # the server knows those of the colluders.
        self._planned_shares = secret_shares(config)
        variance = share_variance(
            privacy.dp_eps if epsilon is None else epsilon,
            privacy.dp_delta,
            noise=privacy.dp_noise,
            l2=released.l2,
            length=released.length,
            shares=self._planned_shares,
            steps=total,
        )
        self.terms = NoisySum.of(
            length=released.length,
            l2=released.l2,
            variance=variance,
            largest=released.largest,
            clients=config.data.clients,
            noise=privacy.dp_noise,
        )
        self._finished: Counter[int] = Counter()
        self._sides: list[NoisyReleases] = []

    @property
    def threshold(self) -> int:
        """Clients that every sum has at least."""
        return self._planned_shares + self.colluders

    @property
    def noise_multiplier(self) -> float:
        """Planned standard deviation of a sum's noise, divided by the sensitivity."""
        return math.sqrt(self._planned_shares * self.terms.variance) / self.terms.l2

    @property
    def shares(self) -> Counter[int]:
        """How many of the charged sums have how many secret shares of noise.

        A sum that did not come to an end counts with the least noise that was planned.
        """
        unfinished = self.charged - self._finished.total()
        return self._finished + Counter({self._planned_shares: unfinished})

    def released(self, survivors: int) -> None:
        """Note that the last sum that was charged has the noise of ``survivors`` clients."""
        self._finished[survivors - self.colluders] += 1

    def restore(self, charged: int) -> None:
        """Count ``charged`` sums as made, with the least noise that was planned.

        Raises:
            ValueError: ``charged`` is negative or above ``total``.
        """
        super().restore(charged)
        self._finished.clear()
        for side in self._sides:
            side.budget.restore(charged)

    def share(self, client: int) -> NoisyReleases:
        """Return a client's side; its key is fresh unless the run has a seed."""
        if self.seed is None:
            key = secrets.token_bytes(32)
        else:
            key = derive_bytes(self.seed, self.released_kind.name, client)
        side = NoisyReleases(self.terms, PrivacyBudget(self.total), key)
        self._sides.append(side)
        return side

    def journal_shares(self, journal: Callable[[int], None]) -> None:
        """Let the clients' own budgets keep this journal, as `PrivacyBudget.journal`."""
        for side in self._sides:
            side.budget.journal = journal

    def planned(self) -> Release:
        """Return all sums of the run with the least noise that is planned."""
        return self._release(self._planned_shares, self.total)

    def releases(self) -> tuple[Release, ...]:
        """Return the sums so far, one release for each number of secret shares."""
        return tuple(self._release(shares, count) for shares, count in sorted(self.shares.items()))

    def _release(self, shares: int, count: int) -> Release:
        kind, mechanism = self.released_kind, self.terms.mechanism(shares)
        return Release(
            name=kind.name,
            unit=kind.unit,
            adjacency=kind.adjacency,
            mechanism=mechanism,
            steps=count,
        )

    def epsilon(self) -> float:
        """Return the epsilon of `guarantee` alone, without the time that group privacy takes."""
        return privacy_cost(self.releases(), self._delta).epsilon

    def guarantee(self) -> Guarantee:
        """Return what all sums so far have cost, with the noise that was really there."""
        return Guarantee.of(
            self.releases(),
            self._delta,
            unit=self.released_kind.unit,
            adjacency=self.released_kind.adjacency,
            seed=self.seed,
            steps=self.charged,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=1.0,
            clip=self.released_kind.clip,
            noise_colluders=self.colluders,
            threshold=self.threshold,
        )


def noise_colluders(config: Resolved) -> int:
    """Return n_C, the clients of a sum that may tell the server their share of noise.

    Unless it is set, it is 1, or what the threshold bears in the malicious model.

    Raises:
        UserError: it is not below the threshold, so that no secret noise is left.
    """
    settings, chosen = _settings(config), config.privacy.noise_colluders
    if chosen is None:
        chosen = colluders(settings) if settings.threat_model == "malicious" else 1
    if chosen >= settings.needed:
        raise UserError(
            f"--noise-colluders must be below the threshold of {settings.needed}, not {chosen}: "
            "somebody's noise must be secret"
        )
    return chosen


def secret_shares(config: Resolved) -> int:
    """Return t - n_C, the shares of noise that are secret in every sum.

    Raises:
        UserError: there would be none.
    """
    # A sum over fewer than t clients is aborted, so t shares are in it at least. The server can
    # subtract the shares of n_C colluders; only the other t - n_C hide the vectors.
    return _settings(config).needed - noise_colluders(config)


def _settings(config: Resolved) -> AggregationSettings:
    secure = config.secure
    return AggregationSettings(
        roster=tuple(range(config.data.clients)),
        threshold=secure.threshold,
        threat_model=secure.threat_model,
    )
