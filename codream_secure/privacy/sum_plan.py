"""Noisy sums of several kinds under one budget, each with noise for what is left of it.

The noise of a sum must be enough if as few clients as the threshold stay. Where more stay, the sum
has more noise and costs less than it might have; the rest is known as soon as it is over, and later
sums have it. Only the last sum's surplus is lost.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import NoisyTerms
from codream_secure.config.resolved import PrivateRun
from codream_secure.errors import RequestRefused, UserError
from codream_secure.privacy.accounting import Release, privacy_cost
from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.privacy.mechanisms import DiscreteGaussianSum
from codream_secure.privacy.noisy_sum import NoisySum, noisy_terms
from codream_secure.privacy.release_plan import Released, noise_colluders, secret_shares
from codream_secure.privacy.sum_filter import SumFilter, most_signal, signal_of, variance_for
from codream_secure.runtime.seeds import derive_bytes

# Noise is sized anew only where it would change by more than this: tables of noise take seconds.
_CHANGE = 1.05
# A sum that could have less than this part of the signal that was planned for it is left out.
_LEAST_PART = 1 / 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of sums: what they release, how many there are, and their part of the budget.

    Attributes:
        released: what each sum releases.
        sums: how many.
        share: part of the whole signal that they have together, above 0; all parts add up to 1.
    """

    released: Released
    sums: int
    share: float


@dataclass(frozen=True, slots=True)
class _Made:
    """A sum that was made: its part, the variance of a share, and its secret shares."""

    part: int
    variance: int
    shares: int


@dataclass(slots=True, eq=False)
class OwnSums:
    """One client's part in the noisy sums of a run, with its own account of the budget.

    Attributes:
        kinds: what may be released, by name.
        filter: the client's own account. A sum whose survivors it did not verify counts with as
            few shares as the threshold leaves.
        least, colluders: secret shares of such a sum, and how many clients may tell theirs.
        clients: clients in a sum at most.
        key: 32 secret bytes from which the noise of all sums is derived.
    """

    kinds: dict[str, Released]
    filter: SumFilter
    least: int
    colluders: int
    clients: int
    key: bytes = field(repr=False)
    _asked: tuple[Released, NoisySum] | None = field(init=False, default=None)

    def take(self, name: str, asked: NoisyTerms) -> None:
        """Charge one sum, before anything is computed for it.

        Args:
            name: of what is released.
            asked: the terms that the server proposes.

        Raises:
            RequestRefused: the terms are not those of this kind, or have less noise than the
                survivors that this client has verified allow.

        Guarantee:
            The sums that this client takes part in have together at most the signal of its filter,
            whatever the server says; see `SumFilter`.
        """
        kind = self.kinds.get(name)
        if kind is None or asked.noise != "gaussian" or asked.variance < 1:
            raise RequestRefused("a noisy sum that this client does not know")
        try:
            terms = _terms(kind, asked.variance, self.clients)
        except UserError as error:
            raise RequestRefused(str(error)) from None
        if asked != noisy_terms(terms):
            raise RequestRefused("a noisy sum on terms that this client does not know")
        worst = _signal(terms, self.least)
        if not self.filter.fits(worst):
            raise RequestRefused("less noise than the survivors of earlier sums allow")
        self.filter.begin(worst)
        self._asked = kind, terms

    def codes(self, vector: NDArray[np.int64], step: int, request: bytes) -> NDArray[np.uint32]:
        """Return `NoisySum.answer` to a request, under the terms of the sum that was taken."""
        if self._asked is None:
            raise ValueError("no sum was taken")
        return self._asked[1].answer(vector, self.key, step, request)

    def verified(self, survivors: int) -> None:
        """Note how many clients are in the sum that was taken, as the own session verified."""
        if self._asked is not None:
            secret = max(self.least, survivors - self.colluders)
            self.filter.end(_signal(self._asked[1], secret))
            self._asked = None


class SumPlan(PrivacyBudget):
    """All noisy sums of a run: how many, in which order, and how much noise the next one needs.

    Args:
        config: of the run.
        parts: the kinds of sums, in their order; all of one unit and one adjacency.
        epsilon: for all sums together; None: ``dp_eps``.

    Raises:
        UserError: no noise fits the budget, or nobody's noise would be secret.

    Guarantee:
        All sums together cost at most ``epsilon`` if at most ``noise_colluders`` clients of each
        tell the server their noise, however many clients at or above the threshold stay. Mechanism:
        `SumFilter` over `DiscreteGaussianSum`; proof: docs/accounting.md; test:
        tests/codream_secure/privacy/test_sum_plan.py. A sum is charged before it is asked for, and
        an aborted one stays charged with the least noise.

    Attributes:
        parts: as the argument.
        colluders: clients of a sum that may tell the server their noise.
        filter: the account of signals.
    """

    def __init__(
        self, config: PrivateRun, parts: Sequence[Part], *, epsilon: float | None = None
    ) -> None:
        super().__init__(sum(part.sums for part in parts))
        privacy = config.privacy
        self.parts, self.seed, self._delta = tuple(parts), config.run.seed, privacy.dp_delta
        self.colluders = noise_colluders(config)
        self._least, self._clients = secret_shares(config), config.data.clients
        asked = privacy.dp_eps if epsilon is None else epsilon
        self.filter = SumFilter(most_signal(asked, privacy.dp_delta))
        self._expected = self._clients - self.colluders
        self._made: list[_Made] = []
        self._open: _Made | None = None
        self._last: dict[int, int] = {}
        self._sides: list[OwnSums] = []
        # Refuses what cannot be planned before anything is released.
        self._planned = [self._planned_noise(index) for index in range(len(self.parts))]

    # -- the next sum --------------------------------------------------------------------------

    def next_terms(self) -> NoisySum | None:
        """Charge the next sum and return its terms; None: all are made, or too little is left."""
        index = self._index(self.charged)
        if index is None or (variance := self._sized(index)) is None:
            return None
        made = _Made(index, variance, self._least)
        terms = self._terms(made)
        worst = _signal(terms, self._least)
        if not self.filter.fits(worst) or not self.reserve():
            return None
        self._close()
        self.filter.begin(worst)
        self._open, self._last[index] = made, variance
        return terms

    def released(self, survivors: int) -> None:
        """Note that the last sum has the noise of ``survivors`` clients."""
        if self._open is None:
            raise ValueError("no sum was begun")
        self._expected = max(self._least, survivors - self.colluders)
        made = _Made(self._open.part, self._open.variance, self._expected)
        self.filter.end(_signal(self._terms(made), made.shares))
        self._made.append(made)
        self._open = None

    def _close(self) -> None:
        """Count a sum that came to no end with the least noise."""
        if self._open is not None:
            self._made.append(self._open)
            self._open = None

    def _index(self, position: int) -> int | None:
        for index, part in enumerate(self.parts):
            if position < part.sums:
                return index
            position -= part.sums
        return None

    def _sized(self, index: int) -> int | None:
        """Return the variance of a share for the next sum, of part ``index``; None: too much.

        All parts have their share of the budget if as many clients stay as did last time. The worst
        case must fit into what is left.
        """
        part = self.parts[index]
        planned = part.share / part.sums
        left, wanted = self.filter.left, planned / self._planned_left(index)
        l2 = part.released.l2
        if left < planned * self.filter.limit * _LEAST_PART:
            return None
        usual = variance_for(left * min(1.0, wanted), l2, self._expected)
        before = self._last.get(index, 0)
        if before and before / usual <= _CHANGE and usual / before <= _CHANGE:
            usual = before
        return max(usual, variance_for(left, l2, self._least))

    def _planned_noise(self, index: int) -> int:
        part = self.parts[index]
        signal = self.filter.limit * part.share / part.sums
        variance = variance_for(signal, part.released.l2, self._expected)
        _terms(part.released, variance, self._clients)
        return variance

    def _planned_left(self, index: int) -> float:
        """Return the part of the budget that is planned for this sum and all after it."""
        done, total = self.charged, 0.0
        for number, part in enumerate(self.parts):
            left = max(0, part.sums - max(0, done)) if number >= index else 0
            done -= part.sums
            total += part.share * left / part.sums
        return max(total, self.parts[index].share / self.parts[index].sums)

    def _terms(self, made: _Made) -> NoisySum:
        return _terms(self.parts[made.part].released, made.variance, self._clients)

    # -- clients -------------------------------------------------------------------------------

    def side(self, client: int) -> OwnSums:
        """Return a client's side; its key is fresh unless the run has a seed."""
        if self.seed is None:
            key = secrets.token_bytes(32)
        else:
            key = derive_bytes(self.seed, "noisy sums", client)
        kinds = {part.released.name: part.released for part in self.parts}
        own = SumFilter(self.filter.limit)
        side = OwnSums(kinds, own, self._least, self.colluders, self._clients, key)
        self._sides.append(side)
        return side

    def journal_shares(self, journal: Callable[[int], None]) -> None:
        """Do nothing: in a simulation the plan's own journal is the record of all."""

    # -- what was spent ------------------------------------------------------------------------

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise of a sum of the last part, divided by the sensitivity.

        That of all secret shares if as many clients stay as in the last sum.
        """
        last = len(self.parts) - 1
        made = _Made(last, self._last.get(last) or self._planned[last], self._expected)
        return float(_signal(self._terms(made), made.shares) ** -0.5)

    def releases(self) -> tuple[Release, ...]:
        """Return the sums so far, those of equal noise together."""
        made = [*self._made, *([] if self._open is None else [self._open])]
        kinds = list(dict.fromkeys(made))
        return tuple(self._release(kind, made.count(kind)) for kind in kinds)

    def _release(self, made: _Made, count: int) -> Release:
        kind = self.parts[made.part].released
        return Release(
            name=kind.name,
            unit=kind.unit,
            adjacency=kind.adjacency,
            mechanism=_mechanism(self._terms(made), made.shares),
            steps=count,
        )

    def epsilon(self) -> float:
        """Return the epsilon of `guarantee` alone, without the time that group privacy takes."""
        return privacy_cost(self.releases(), self._delta).epsilon

    def guarantee(self) -> Guarantee:
        """Return what all sums so far have cost, with the noise that was really there."""
        kind = self.parts[-1].released
        return Guarantee.of(
            self.releases(),
            self._delta,
            unit=kind.unit,
            adjacency=kind.adjacency,
            seed=self.seed,
            steps=max(0, self.charged - sum(part.sums for part in self.parts[:-1])),
            noise_multiplier=self.noise_multiplier,
            sampling_rate=1.0,
            clip=kind.clip,
            noise_colluders=self.colluders,
            threshold=self._least + self.colluders,
        )

    # -- checkpoints ---------------------------------------------------------------------------

    def state(self) -> list[tuple[int, int, int]]:
        """Return what a checkpoint stores: part, variance and secret shares of every sum."""
        made = [*self._made, *([] if self._open is None else [self._open])]
        return [(one.part, one.variance, one.shares) for one in made]

    def restore_sums(self, made: Sequence[tuple[int, int, int]], charged: int) -> None:
        """Count the sums of a checkpoint, and those that were charged after it was written.

        Of these the noise is not known: each counts with the most signal that it may have had.

        Raises:
            ValueError: the numbers do not belong to this plan.
        """
        if not len(made) <= charged <= self.total:
            raise ValueError(f"{charged} noisy sums charged, and {len(made)} made")
        for part, variance, shares in made:
            self._count(_Made(part, variance, shares))
            self._last[part] = variance
        self._expected = made[-1][2] if made else self._expected
        most = _CHANGE * (self._clients - self.colluders) / self._least
        for position in range(len(made), charged):
            if (index := self._index(position)) is None:
                raise ValueError("more sums than were planned")
            kind = self.parts[index]
            self.charged = position
            most_of_left = min(1.0, most * kind.share / kind.sums / self._planned_left(index))
            if (signal := self.filter.left * most_of_left) <= 0:
                break
            variance = variance_for(signal, kind.released.l2, self._least)
            self._count(_Made(index, variance, self._least))
        self.charged = charged
        for side in self._sides:
            side.filter.spent = self.filter.spent

    def _count(self, made: _Made) -> None:
        if not (0 <= made.part < len(self.parts) and self._least <= made.shares <= self._clients):
            raise ValueError("sums of another run")
        signal = _signal(self._terms(made), made.shares)
        self.filter.begin(signal)
        self.filter.end(signal)
        self._made.append(made)


def _terms(kind: Released, variance: int, clients: int) -> NoisySum:
    return NoisySum.of(
        length=kind.length,
        l2=kind.l2,
        variance=variance,
        largest=kind.largest,
        clients=clients,
        noise="gaussian",
    )


def _mechanism(terms: NoisySum, shares: int) -> DiscreteGaussianSum:
    found = terms.mechanism(shares)
    if not isinstance(found, DiscreteGaussianSum):
        raise TypeError("the filter is for discrete Gaussian noise")
    return found


def _signal(terms: NoisySum, shares: int) -> float:
    return signal_of(_mechanism(terms, shares))


def sums_of_messenger(config: PrivateRun, gradients: Released, means: Released) -> SumPlan:
    """Return the plan of the noisy sums that train a common model.

    Args:
        config: of the run. ``statistics_eps`` is what class means would cost alone.
        gradients: what a sum of gradients releases.
        means: what the class means release.

    Raises:
        UserError: class means leave nothing for gradients, or as `SumPlan`.
    """
    privacy, parts = config.privacy, []
    share = 0.0
    if privacy.statistics_eps:
        if privacy.statistics_eps >= privacy.dp_eps:
            raise UserError(
                f"--statistics-eps {privacy.statistics_eps:g} leaves nothing of --dp-eps "
                f"{privacy.dp_eps:g} for training; give it less, or 0"
            )
        delta = privacy.dp_delta
        share = most_signal(privacy.statistics_eps, delta) / most_signal(privacy.dp_eps, delta)
        parts.append(Part(released=means, sums=1, share=share))
    parts.append(Part(released=gradients, sums=privacy.dp_steps, share=1 - share))
    return SumPlan(config, parts)
