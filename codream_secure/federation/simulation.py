"""CoDream with all clients and the server on one machine.

Read `Simulation.round` first: it is one round from beginning to end.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_secure.aggregation.aggregator import DREAMING, Aggregator
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.requests import GradientRequest, ModelRequest, StatisticsRequest
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import UserError
from codream_secure.federation.common_model import CommonModel, round_sums
from codream_secure.federation.groups import dream_groups
from codream_secure.federation.members import Member
from codream_secure.federation.noisy_model import NoisyModel
from codream_secure.federation.observer import Measurement
from codream_secure.federation.rounds import Progress
from codream_secure.federation.run import Run
from codream_secure.federation.run_models import check_single_dreams, warn_of_size
from codream_secure.federation.server import Server
from codream_secure.learning.acquisition import acquire
from codream_secure.learning.compute import Work
from codream_secure.learning.schedule import acquisition_settings, warmup_steps
from codream_secure.privacy.class_means import ClassMeanImages
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.runtime.parallel import in_parallel
from codream_secure.runtime.seeds import generator
from codream_secure.storage.checkpoint import FORMAT, RunState, StatisticsState, Weights
from protocols.rounds import Tap


class Simulation(Run):
    """CoDream, or its variant with a generator (CoDream-fast), in one process.

    Only sums pass from the clients to the server.

    Args:
        config: settings; defaults that depend on other settings are filled in.
        dataset: used instead of the dataset that the settings name.
        progress: follows what happens inside a round.
        tap: sees every protocol message (see `SecureAggregator`).
        compare_independent: whether to train a twin beside each client, on local data alone.
        keep: which training examples take part (see `Federation`).

    Attributes:
        groups: the clients that dream together: one group of all, or one per client.
        server: its student, and class means if some were released.

    Raises:
        UserError: the settings cannot be run.

    Guarantee:
        With ``dp_eps`` everything that leaves a client is (epsilon, delta)-DP with respect to
        adding or removing one of its examples. Local data is touched by at most ``dp_steps``
        DP-SGD steps and, once, by the class means, whose noise is that of all clients together
        (`privacy.class_means`); the noise of both was computed for their total. Dreams, labels
        and distillation are post-processing. With ``dp_unit`` client, noisy sums of labels are
        all that leaves the clients (`privacy.client_labels`). With codream-messenger, noisy sums
        of class means and of gradients of the common model are all that does
        (`privacy.sum_plan`); clients that train alone for comparison, and own models under
        ``keep_models_home``, are outside of it. `guarantee` reports what was really
        released.
    """

    makes_dreams = True
    aggregator: Aggregator

    def __init__(
        self,
        config: Config,
        *,
        dataset: Dataset | None = None,
        progress: Progress | None = None,
        tap: Tap | None = None,
        compare_independent: bool = True,
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(resolve(config), dataset=dataset, progress=progress, keep=keep)
        everybody = self.federation
        self._has_twins = compare_independent
        by_name = {everybody.model_names[c]: m for c, m in everybody.client_models().items()}
        check_single_dreams(self.config, everybody.spec, by_name)
        self._reported_weights: dict[str, Weights] | None = None
        self.common: CommonModel | NoisyModel | None = None
        self.aggregator = self._aggregator(tap)
        self.groups = dream_groups(everybody, self.aggregator)
        self.server = Server(
            self.config,
            self.aggregator,
            self.groups,
            everybody.student,
            plan=everybody.plan,
            per_class=everybody.per_class,
        )
        if self.config.has_common_model:
            name, model = self.config.common_architecture, everybody.student.model
            if self.config.messenger.messenger or not self.config.has_noisy_model:
                # Under DP the default is small because noise grows with size, not to save bytes.
                warn_of_size(name, model, everybody.client_models())
            if self.config.has_noisy_model:
                self.common = NoisyModel(
                    everybody,
                    self.server,
                    self.aggregator,
                    self.ledger,
                    twins=compare_independent,
                )
            else:
                self.common = CommonModel(
                    everybody, self.aggregator, self.ledger, twins=compare_independent
                )

    # -- the run ---------------------------------------------------------------------------

    @property
    def last_round(self) -> int:
        """The round after which the run is over."""
        return self.config.dream.rounds

    def prepare(self) -> None:
        """Release class means and train every client, unless a checkpoint was restored."""
        if self.finished_rounds:
            return
        if isinstance(self.common, NoisyModel):
            with self.stopwatch.measure("local_training"):
                self.common.begin(self._progress)
            return
        self._release_class_means()
        with self.stopwatch.measure("local_training"):
            self.warm_up()

    def round(self, number: int) -> Measurement:
        """Make dreams together, let everybody learn from them, and measure."""
        if self.common is not None:
            self.common.run(number, self._progress, self.stopwatch, self.budget_spent)
        if self._dreams_in_rounds:
            with self.stopwatch.measure("dreaming"):
                self._dream(number)
            with self.stopwatch.measure("acquisition"):
                self._acquire(number)
        measurement = self._measure(number)
        if self.observer.reported() is measurement:
            # A later round may be reported instead, or none: this is the only time to copy them.
            self._reported_weights = super().weights()
        return measurement

    def _release_class_means(self) -> None:
        """Let all clients release class means under DP, and everybody start from them."""
        if self.server.class_mean_terms is None:
            return
        self._progress.start("class means of all clients", 1)
        self.server.release_class_means()
        self._progress.advance()

        def learn(member: Member) -> None:
            self.server.teach_class_means(member.client.learner, member.identity)

        for _ in in_parallel(learn, self.federation.members.values()):
            pass

    def warm_up(self) -> None:
        """Train every client on its own data, as is done before the first dream."""
        everybody = self.federation
        steps = warmup_steps(self.config, everybody.plan, everybody.share)

        def train(member: Member) -> None:
            for _ in range(steps):
                member.client.learner.local_step()

        self._for_each_member("local training", train)

    def _for_each_member(self, activity: str, work: Callable[[Member], None]) -> None:
        """Let every member do ``work``, then let each twin take as many local steps."""
        members = self.federation.members.values()
        self._progress.start(activity, len(members))
        for _ in in_parallel(work, members):
            self._progress.advance()
        if not self._has_twins:
            return
        with self.stopwatch.measure("independent"):
            self._progress.start("independent training, to compare", len(members))
            for _ in in_parallel(Member.train_twin, members):
                self._progress.advance()

    @property
    def _dreams_in_rounds(self) -> bool:
        """Whether rounds make dreams; with a common model they need not."""
        return self.common is None or self.config.learning.kd_epochs > 0

    def _dream(self, number: int) -> None:
        dream = self.config.dream
        total = len(self.groups) * dream.syntheses * dream.sums_per_synthesis
        self._progress.start(f"round {number} of {self.last_round}: dream steps", total)
        found = self.server.dream(number, self._progress.advance)
        self.dreams += found
        self.unlabelled_rounds += not found

    def _acquire(self, number: int) -> None:
        """Let clients and student learn from dreams, and the twins from local data alone."""
        everybody = self.federation
        done = self.budget_spent
        if self.common is not None:
            done = self.common.done(number, done)
        # With noisy sums no learner spends budget of its own.
        plan = None if everybody.sum_plan else everybody.plan
        settings = acquisition_settings(self.config, plan, everybody.share, number, done)
        if self.config.has_noisy_model and not self.config.privacy.keep_models_home:
            settings = dataclasses.replace(settings, order="two-stage", local_steps=0)
        buffers = {c: group.buffer for group in self.groups for c in group.members}

        def learn(member: Member) -> None:
            shuffle = generator(self._seed, "acquisition", number, member.identity)
            acquire(member.client.learner, buffers[member.identity], settings, shuffle)

        self._for_each_member(f"round {number} of {self.last_round}: knowledge acquisition", learn)
        if self._collaborates and self.common is None:
            self.server.distil(number, done)

    # -- checkpoints -----------------------------------------------------------------------

    @cached_property
    def _data_digest(self) -> str:
        return self.federation.data_digest()

    def state(self, *, checkpoint_every: int) -> RunState:
        """Return what a checkpoint stores between two rounds.

        Args:
            checkpoint_every: rounds between two checkpoints; a continued run keeps the interval.
        """
        student, groups = self.server.state()
        last = None
        if self.dreams:
            pixels, targets = self.dreams[-1].pixels, self.dreams[-1].targets
            last = torch.from_numpy(pixels.copy()), targets.clone()
        return RunState(
            format=FORMAT,
            config=self.config.options(),  # type: ignore[arg-type]
            dataset=self._data_digest,
            checkpoint_every=checkpoint_every,
            resumed=self.resumed,
            members={c: member.state() for c, member in self.federation.members.items()},
            student=student,
            groups=groups,
            history=self.observer.state(),
            reported=self._reported_weights,
            last_dreams=last,
            statistics=self._class_means(),
            unlabelled_rounds=self.unlabelled_rounds,
            bytes=self.ledger.state(),
            stopwatch=self.stopwatch.state(),
            common=self.common.state() if isinstance(self.common, CommonModel) else None,
            noisy=self.common.state() if isinstance(self.common, NoisyModel) else None,
        )

    def _class_means(self) -> StatisticsState | None:
        plan = self.federation.plan
        if plan is None or (shares := plan.class_mean_shares) is None:
            return None
        images = self.server.images
        return StatisticsState(means=None if images is None else images.means, shares=shares)

    def restore(self, state: RunState, charged: int = 0) -> None:
        """Restore the state that `state` returned; call it before `rounds`.

        Args:
            state: of the same configuration and the same data.
            charged: private steps on record as reserved, those after the state was taken included.

        Raises:
            UserError: the data has changed.
            ValueError, RuntimeError, KeyError: the state does not fit; this object is unusable.
        """
        if state.dataset != self._data_digest:
            raise UserError(
                f"the dataset {self.config.data.dataset} has changed since the checkpoint; "
                "put the old one back, or start a new run"
            )
        everybody = self.federation
        if state.members.keys() != everybody.members.keys():
            raise ValueError("members of another federation")
        self.ledger.restore(state.bytes)
        for c, member in everybody.members.items():
            member.restore(state.members[c])
        self.server.restore(state.student, state.groups)
        kept = state.common or state.noisy
        if (self.common is None) != (kept is None):
            raise ValueError("a run with a common model is none without")
        if isinstance(self.common, CommonModel) and state.common is not None:
            self.common.restore(state.common)
        if isinstance(self.common, NoisyModel) and state.noisy is not None:
            self.common.restore(state.noisy, charged)
        self.observer.restore(state.history)
        self._reported_weights = state.reported
        if state.last_dreams is not None:
            pixels, targets = state.last_dreams
            self.dreams = [LabelledDreams(pixels.numpy(), targets)]
        self.unlabelled_rounds = state.unlabelled_rounds
        self.stopwatch.restore(state.stopwatch)
        self.resumed = state.resumed + 1
        if everybody.label_plan:
            everybody.label_plan.restore(charged)
        elif everybody.plan and not everybody.sum_plan:
            self._restore_private_training(everybody.plan, state, charged)

    def _restore_private_training(self, plan: PrivacyPlan, state: RunState, charged: int) -> None:
        taken = max(m.client.learner.local_steps for m in state.members.values())
        # A record with fewer steps than were taken would give back budget that is spent.
        if charged < taken:
            raise ValueError(f"{taken} private steps were taken and {charged} charged")
        plan.restore(charged)
        if (kept := state.statistics) is not None:
            plan.restore_class_means(kept.shares)
            if kept.means is not None:
                self.server.start_dreams_from(ClassMeanImages(kept.means))

    # -- results ---------------------------------------------------------------------------

    @property
    def method_name(self) -> str:
        """As the option ``method`` has it."""
        return self.config.dream.method

    @property
    def masked(self) -> bool:
        """Whether what clients send is masked."""
        return self.config.secure.secure

    def client_models(self) -> Mapping[int, nn.Module]:
        """Return the clients' models."""
        return self.federation.client_models()

    def server_model(self) -> nn.Module | None:
        """Return the student's model; without collaboration there is no student."""
        return self.server.student.model if self._collaborates else None

    def twin_models(self) -> Mapping[int, nn.Module]:
        """Return the models of independent training."""
        return self.federation.twin_models() if self._has_twins else {}

    def weights(self) -> dict[str, Weights]:
        """Return the weights of all models as they were after the reported round."""
        return self._reported_weights or super().weights()

    def _work(self) -> Sequence[Work]:
        return [member.client.learner.work for member in self.federation.members.values()]

    @property
    def rolled_back(self) -> int:
        """Dream or generator steps that were undone because their result was not finite."""
        return sum(group.rolled_back for group in self.groups)

    @property
    def _sums_per_synthesis(self) -> int:
        """Aggregations per synthesis; with client-level DP, that of the labels alone."""
        return 1 if self.config.private_clients else self.config.dream.sums_per_synthesis

    @property
    def _collaborates(self) -> bool:
        return self.config.dream.collaboration

    def _aggregator(self, tap: Tap | None) -> Aggregator:
        """Return the aggregator of all clients."""
        answers = {c: member.client.answer for c, member in self.federation.members.items()}
        everybody = self.federation
        sums, plan = self._sums_per_synthesis, everybody.plan
        class_means = plan is not None and plan.class_means is not None
        expected, kinds = self.last_round * self.config.dream.syntheses * sums, DREAMING
        if self.config.has_common_model:
            # One key exchange serves a round: its averages, and the labels of its dreams.
            sums = round_sums(self.config)
            expected, kinds = self.last_round * sums, kinds | {ModelRequest.__name__}
            if everybody.sum_plan is not None:
                sums, expected = everybody.sum_plan.total, everybody.sum_plan.total
                kinds = frozenset({StatisticsRequest.__name__, GradientRequest.__name__})
        settings = self._aggregation_settings(sums, expected + class_means)
        if self.config.secure.secure and self._collaborates:
            session = os.urandom(32)
            return SecureAggregator(
                answers, settings, self._meters, session=session, tap=tap, kinds=kinds
            )
        return PlainAggregator(answers, settings, self._meters)
