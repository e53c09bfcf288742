"""All private releases of a run, fixed before it starts: how many, when, with what noise."""

import math
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from codream_secure.config.resolved import PrivateRun, Resolved
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.privacy.accounting import (
    ADJACENCY,
    Guarantee,
    Release,
    check_meaning,
    cost,
    group_epsilons,
    integer_variance,
    training,
    training_noise,
)
from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.class_means import StatisticsTerms, length, release, sensitivity
from codream_secure.privacy.colluders import hidden_shares, noise_colluders
from codream_secure.privacy.noisy_sum import integer_mechanism
from codream_secure.runtime.seeds import derive_bytes, derive_seed

if TYPE_CHECKING:
    from torch import nn

    from codream_secure.privacy.dpsgd import PrivateTrainer


# Per-example gradients of a larger batch fill memory and gain nothing (measured on 2,000 examples
# a client of Fashion-MNIST: 512 is as accurate as the full batch, in a quarter of the time).
_LARGEST_DEFAULT_BATCH = 512


# Step sizes for a noise multiplier z of training: at most the first, and the second over z. Public
# constants, chosen on validation folds of the digits' training part. Models that begin with class
# means are good already, and too much noise would undo that.
_RATE, _RATE_AFTER_STATISTICS = (2.0, 8.0), (1.0, 4.0)


class PrivacyPlan:
    """Class means once, and ``dp_steps`` private steps over warm-up and rounds.

    Every number here is public and none depends on how many examples a client has: the sampling
    rate is ``dp_batch`` over an even share of the training part.

    Args:
        config: resolved, with ``dp_eps`` set.
        examples: training examples of all clients together; public.
        spec: shape of an image, and the number of classes.

    Raises:
        UserError: the budget or the batch cannot be had, or nobody's noise would be left.

    Guarantee:
        The noise of training is computed once for all ``dp_steps`` steps and what else is
        released, so that all together cost at most ``dp_eps``. Charging it again a
        round, as `make_private_with_epsilon` of Opacus invites, would overspend. Steps that an
        interrupted run had reserved stay charged, whether or not they were taken. The noise of the
        class means is enough if as few clients as the threshold stay and ``noise_colluders`` of
        them tell the server their share.

    Attributes:
        statistics: the terms of the class means; None if there are none.
        noise_multiplier: of the clients' training.
        independent_noise: of independent training, which has the whole budget for itself.
        charged: steps reserved so far, in all processes that the run has had.
        shares: of noise in the class means that the server cannot know; None: not asked for yet.
        journal: told ``charged`` before steps are taken; what it stores must outlive a crash.
    """

    def __init__(self, config: PrivateRun, examples: int, spec: InputSpec) -> None:
        privacy = config.privacy
        check_meaning(privacy.dp_delta, examples)
        share = examples // config.data.clients
        most = share if privacy.secure_noise else _LARGEST_DEFAULT_BATCH
        batch = privacy.dp_batch or min(share, most)
        if batch > share:
            raise UserError(
                f"--dp-batch can be at most {share}, an even share of the data, not {batch}"
            )
        if privacy.secure_noise and batch < share:
            raise UserError(
                f"--secure-noise has no proof for sampled batches: leave --dp-batch out, or "
                f"give it {share}, an even share of the data"
            )
        self.seed = config.run.seed
        self.sampling_rate = batch / share
        self._colluders = self._hidden = 0
        if privacy.statistics_eps:
            self._colluders, self._hidden = noise_colluders(config), hidden_shares(config)
        self.statistics = self._terms(config, share, spec)
        self.shares: int | None = None
        budget = privacy.dp_eps, privacy.dp_delta, self.sampling_rate, privacy.dp_steps
        integers = privacy.secure_noise
        self.noise_multiplier = training_noise(*budget, self._planned(), integers=integers)
        self.independent_noise = training_noise(*budget, integers=integers)
        self._batch = batch
        self._settings = privacy
        self._rounds = config.dream.rounds
        self._budgets: dict[tuple[str, int], PrivacyBudget] = {}
        self.charged = 0
        self.journal: Callable[[int], None] = lambda _: None

    @classmethod
    def of(cls, config: Resolved, examples: int, spec: InputSpec) -> Self | None:
        """Return the plan of a resolved configuration; None unless local training is private."""
        if isinstance(config, PrivateRun) and config.private_training:
            return cls(config, examples, spec)
        return None

    def _terms(self, config: PrivateRun, share: int, spec: InputSpec) -> StatisticsTerms | None:
        privacy = config.privacy
        if not privacy.statistics_eps:
            return None
        if privacy.dp_eps <= privacy.statistics_eps:
            raise UserError(
                f"--statistics-eps {privacy.statistics_eps:g} leaves nothing of --dp-eps "
                f"{privacy.dp_eps:g} for training; give it less, or 0"
            )
        l2, dimension, noise = sensitivity(spec), length(spec), privacy.dp_noise

        def one(ratio: float) -> int:
            return math.ceil(ratio * l2**2 / self._hidden)

        ratio = integer_variance(
            privacy.statistics_eps,
            privacy.dp_delta,
            lambda tried: integer_mechanism(noise, l2, dimension, one(tried), self._hidden),
        )
        return StatisticsTerms.of(
            spec, share=share, clients=config.data.clients, variance=one(ratio), noise=noise
        )

    def _planned(self) -> tuple[Release, ...]:
        return (release(self.statistics, self._hidden),) if self.statistics else ()

    def noise_key(self, client: int) -> bytes:
        """Return the key of a client's noise in the class means: fresh unless a seed is given."""
        if self.seed is None:
            return secrets.token_bytes(32)
        return derive_bytes(self.seed, "statistics", client)

    def charge_statistics(self) -> None:
        """Charge the class means as planned, before they are asked for."""
        self.shares = self._hidden

    def statistics_released(self, survivors: int) -> None:
        """Note how many clients' noise the class means really have."""
        self.shares = survivors - self._colluders

    @property
    def warmup_steps(self) -> int:
        """Private steps before the first round."""
        return round(self._settings.dp_warmup * self._settings.dp_steps)

    def round_steps(self, number: int) -> int:
        """Return the private steps of round ``number`` (from 1); all rounds use up the rest."""
        rest = self._settings.dp_steps - self.warmup_steps
        return rest * number // self._rounds - rest * (number - 1) // self._rounds

    def even_steps(self, number: int) -> int:
        """Return the private steps of round ``number`` if all are spread over the rounds alike."""
        total, last = self._settings.dp_steps, self._rounds
        return total * min(number, last) // last - total * min(number - 1, last) // last

    def reserve(self, steps: int) -> int:
        """Return how many of the next ``steps`` every client may take; they are charged now."""
        allowed = min(steps, self._settings.dp_steps - self.charged)
        if allowed:
            self.journal(self.charged + allowed)
            self.charged += allowed
        return allowed

    def restore(self, charged: int) -> None:
        """Take ``charged`` steps as taken by everybody, independent training included.

        Raises:
            ValueError: more than there are.
        """
        if not 0 <= charged <= self._settings.dp_steps:
            raise ValueError(f"{charged} of {self._settings.dp_steps} private steps charged")
        self.charged = charged
        for budget in self._budgets.values():
            budget.steps_taken = charged

    def trainer(self, model: "nn.Module", role: str, client: int) -> "PrivateTrainer":
        """Return a DP-SGD trainer with a budget of its own.

        Args:
            model: trained in place; no BatchNorm.
            role: "client", or "twin" for independent training, whose cost is its own.
            client: id.
        """
        from codream_secure.privacy.dpsgd import PrivateTrainer  # noqa: PLC0415 - opacus is slow

        budget = PrivacyBudget(self._settings.dp_steps)
        self._budgets[role, client] = budget
        seed = None if self.seed is None else derive_seed(self.seed, "dp", role, client)
        independent = role == "twin"
        noise = self.independent_noise if independent else self.noise_multiplier
        most, over_noise = _RATE if independent or not self.statistics else _RATE_AFTER_STATISTICS
        return PrivateTrainer(
            model,
            clip=self._settings.dp_clip,
            noise_multiplier=noise,
            sampling_rate=self.sampling_rate,
            expected_batch=self._batch,
            learning_rate=self._settings.dp_lr or min(most, over_noise / noise),
            budget=budget,
            seed=seed,
            integers=self._settings.secure_noise,
        )

    def releases(self) -> tuple[Release, ...]:
        """Return what was released about the data of the client that took most steps."""
        budgets = [b for (role, _), b in self._budgets.items() if role == "client"]
        steps = max((budget.steps_taken for budget in budgets), default=0)
        made = [
            training(
                self.noise_multiplier,
                self.sampling_rate,
                steps,
                integers=self._settings.secure_noise,
            )
        ]
        if self.statistics and self.shares is not None:
            made.append(release(self.statistics, self.shares))
        return tuple(made)

    def epsilon(self) -> float:
        """Return the epsilon of `guarantee` alone: group privacy takes many times as long."""
        return cost(self.releases(), self._settings.dp_delta).epsilon

    def guarantee(self) -> Guarantee:
        """Return what the clients' runs have cost so far, with the noise that was there."""
        releases, delta = self.releases(), self._settings.dp_delta
        found = cost(releases, delta)
        return Guarantee(
            unit="example",
            adjacency=ADJACENCY,
            epsilon=found.epsilon,
            delta=delta,
            accountant=found.accountant,
            rdp_epsilon=found.rdp,
            noise_source="os" if self.seed is None else "seeded",
            steps=releases[0].steps,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            clip=self._settings.dp_clip,
            noise_colluders=self._colluders if self.statistics else None,
            groups=group_epsilons(releases, delta),
            releases=releases,
        )
