"""All private releases of a run, fixed before it starts: how many, when, with what noise."""

import secrets
from typing import TYPE_CHECKING, Self

from codream_secure.config.resolved import PrivateRun, Resolved
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.privacy.accounting import (
    ADJACENCY,
    Release,
    check_meaning,
    privacy_cost,
    training,
)
from codream_secure.privacy.budget import PrivacyBudget
from codream_secure.privacy.class_means import ClassMeanTerms, released
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.privacy.noise_search import noise_multiplier_for
from codream_secure.privacy.release_plan import ReleasePlan
from codream_secure.privacy.sum_plan import SumPlan
from codream_secure.runtime.seeds import derive_bytes, derive_seed

if TYPE_CHECKING:
    from torch import nn

    from codream_secure.privacy.dpsgd import PrivateTrainer

# Per-example gradients of a larger batch fill memory and gain nothing (measured on 2,000 examples
# a client of Fashion-MNIST: 512 is as accurate as the full batch, in a quarter of the time).
_LARGEST_DEFAULT_BATCH = 512
# Step size of training with noise multiplier z: min(a, b / z) for the pair (a, b). Public
# constants, chosen on validation folds of the digits' training part. Models that start from class
# means are good already, and large noisy steps would undo that.
_RATE, _RATE_AFTER_CLASS_MEANS = (2.0, 8.0), (1.0, 4.0)


class PrivacyPlan(PrivacyBudget):
    """The private releases of a run: class means once, and ``dp_steps`` training steps.

    All numbers here are public, and none depends on how many examples a client has: the sampling
    rate is ``dp_batch`` divided by an even share of the training part. As a `PrivacyBudget` the
    plan counts the training steps that all clients may take.

    Args:
        config: of the run.
        examples: training examples of all clients together; public.
        spec: shape of an image, and the number of classes.

    Raises:
        UserError: no noise fits the budget, the batch is too large, or nobody's noise would be
            secret.

    Guarantee:
        The noise of training is computed once for all ``dp_steps`` steps and what else is
        released, so that all together cost at most ``dp_eps``. Computing it again in each
        round, as `make_private_with_epsilon` of Opacus invites, would overspend. Steps that an
        interrupted run had reserved stay charged, whether or not they were taken. The noise of the
        class means is enough if as few clients as the threshold stay and ``noise_colluders`` of
        them tell the server their share.

    Attributes:
        class_means: the terms of the class means; None if the run has none.
        class_means_plan: the count and the noise of that one release; None if the run has none.
        noise_multiplier: of the clients' training.
        independent_noise: of independent training, which has the whole budget for itself.
    """

    def __init__(self, config: PrivateRun, examples: int, spec: InputSpec) -> None:
        privacy = config.privacy
        super().__init__(privacy.dp_steps)
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
        self.class_means: ClassMeanTerms | None = None
        self.class_means_plan = self._class_means_plan(config, share, spec)
        others: tuple[Release, ...] = ()
        if self.class_means_plan is not None:
            self.class_means = ClassMeanTerms.of(spec, self.class_means_plan.terms)
            others = (self.class_means_plan.planned(),)
        target = privacy.dp_eps, privacy.dp_delta, self.sampling_rate, privacy.dp_steps
        integers = privacy.secure_noise
        self.noise_multiplier = noise_multiplier_for(*target, others, integers=integers)
        self.independent_noise = noise_multiplier_for(*target, integers=integers)
        self._batch = batch
        self._settings = privacy
        self._rounds = config.dream.rounds
        self._budgets: dict[tuple[str, int], PrivacyBudget] = {}

    @classmethod
    def of(cls, config: Resolved, examples: int, spec: InputSpec) -> Self | None:
        """Return the plan of a resolved configuration; None unless local training is private."""
        if isinstance(config, PrivateRun) and config.private_training:
            return cls(config, examples, spec)
        return None

    @staticmethod
    def _class_means_plan(config: PrivateRun, share: int, spec: InputSpec) -> ReleasePlan | None:
        privacy = config.privacy
        if not privacy.statistics_eps or config.has_noisy_model:
            return None  # noisy sums of a common model have a plan of their own
        if privacy.dp_eps <= privacy.statistics_eps:
            raise UserError(
                f"--statistics-eps {privacy.statistics_eps:g} leaves nothing of --dp-eps "
                f"{privacy.dp_eps:g} for training; give it less, or 0"
            )
        return ReleasePlan(config, released(spec, share), 1, epsilon=privacy.statistics_eps)

    def noise_key(self, client: int) -> bytes:
        """Return the key of a client's noise in the class means; fresh unless there is a seed."""
        if self.seed is None:
            return secrets.token_bytes(32)
        return derive_bytes(self.seed, "statistics", client)

    @property
    def class_mean_shares(self) -> int | None:
        """Secret shares of noise in the class means; None: they were not asked for yet."""
        means = self.class_means_plan
        return next(iter(means.shares)) if means and means.charged else None

    def restore_class_means(self, shares: int) -> None:
        """Count the class means as released with ``shares`` secret shares of noise."""
        if (means := self.class_means_plan) is not None:
            means.restore(1)
            means.released(shares + means.colluders)

    @property
    def warmup_steps(self) -> int:
        """Private steps before the first round."""
        return round(self._settings.dp_warmup * self._settings.dp_steps)

    def round_steps(self, number: int) -> int:
        """Return the private steps of round ``number`` (from 1): an even part of the rest."""
        rest = self._settings.dp_steps - self.warmup_steps
        return rest * number // self._rounds - rest * (number - 1) // self._rounds

    def even_steps(self, number: int) -> int:
        """Return the private steps of round ``number`` if there is no warm-up."""
        total, last = self._settings.dp_steps, self._rounds
        return total * min(number, last) // last - total * min(number - 1, last) // last

    def restore(self, charged: int) -> None:
        """Count ``charged`` steps as taken by every client, in independent training too.

        Raises:
            ValueError: ``charged`` is negative or above ``dp_steps``.
        """
        super().restore(charged)
        for budget in self._budgets.values():
            budget.restore(charged)

    def trainer(self, model: "nn.Module", role: str, client: int) -> "PrivateTrainer":
        """Return a DP-SGD trainer with a budget of its own.

        Args:
            model: trained in place; must not contain BatchNorm.
            role: "client", or "twin" for independent training, which has a guarantee of its own.
            client: its id.
        """
        from codream_secure.privacy.dpsgd import PrivateTrainer  # noqa: PLC0415 - opacus is slow

        budget = PrivacyBudget(self._settings.dp_steps)
        self._budgets[role, client] = budget
        seed = None if self.seed is None else derive_seed(self.seed, "dp", role, client)
        independent = role == "twin"
        noise = self.independent_noise if independent else self.noise_multiplier
        without_means = independent or self.class_means is None
        most, over_noise = _RATE if without_means else _RATE_AFTER_CLASS_MEANS
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
        steps = max((budget.charged for budget in budgets), default=0)
        integers = self._settings.secure_noise
        trained = training(self.noise_multiplier, self.sampling_rate, steps, integers=integers)
        means = self.class_means_plan
        return (trained, *(means.releases() if means else ()))

    def epsilon(self) -> float:
        """Return the epsilon of `guarantee` alone, without the time that group privacy takes."""
        return privacy_cost(self.releases(), self._settings.dp_delta).epsilon

    def guarantee(self) -> Guarantee:
        """Return what the clients' runs have cost so far, with the noise that was really there."""
        releases, means = self.releases(), self.class_means_plan
        return Guarantee.of(
            releases,
            self._settings.dp_delta,
            unit="example",
            adjacency=ADJACENCY,
            seed=self.seed,
            steps=releases[0].steps,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            clip=self._settings.dp_clip,
            noise_colluders=means.colluders if means else None,
            threshold=means.threshold if means else 0,
        )


# Whatever a run charges its private releases to.
AnyPlan = PrivacyPlan | ReleasePlan | SumPlan
