"""A whole federation on one machine, round by round.

Read `Simulation.rounds` first: it is the run from beginning to end.
"""

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_secure.aggregation.aggregator import Aggregator, Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.dreaming.group import DreamGroup
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import UserError
from codream_secure.federation.members import Federation, Member
from codream_secure.federation.observer import Measurement
from codream_secure.federation.server import Server
from codream_secure.learning.acquisition import acquire
from codream_secure.learning.schedule import acquisition_settings, warmup_steps
from codream_secure.privacy.class_means import ClassMeanImages
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.runtime.parallel import in_parallel, one_core_each
from codream_secure.runtime.seeds import generator
from codream_secure.runtime.stopwatch import Stopwatch
from codream_secure.storage.checkpoint import FORMAT, RunState, StatisticsState, Weights
from protocols.rounds import Tap

# A client with more than so many even shares of the examples counts as if it had so many.
WEIGHT_CAP_SHARES = 4


class Progress(Protocol):
    """What a run reports while it goes on."""

    def start(self, activity: str, total: int) -> None:
        """Say what begins now and how many steps it has."""

    def advance(self) -> None:
        """Say that one step of it is done."""


class NoProgress:
    """Reports nothing."""

    def start(self, activity: str, total: int) -> None:
        """Do nothing."""

    def advance(self) -> None:
        """Do nothing."""


def choose_device(name: str) -> torch.device:
    """Return the device that ``--device`` names.

    Raises:
        UserError: CUDA was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Simulation:
    """Clients and a server in one process; only sums pass from the ones to the other.

    Args:
        config: settings; defaults that depend on others are filled in.
        dataset: in place of the one that the settings name.
        progress: told what is going on.
        tap: sees every protocol message (see `SecureAggregator`).
        compare_independent: whether to train twins without dreams beside the clients.
        keep: which training examples take part (see `Federation`).

    Raises:
        UserError: the settings cannot be run.

    Guarantee:
        With ``dp_eps`` everything that leaves a client is (epsilon, delta)-DP with respect to
        adding or removing one of its examples: local data is touched by at most ``dp_steps``
        DP-SGD steps and, once, by the class means, whose noise is that of all clients together
        (`privacy.class_means`); the noise of both was computed for their total. Dreams,
        labels and distillation are post-processing. With ``dp_unit`` client, noisy sums of labels
        are all that leaves the clients (`privacy.client_labels`). `guarantee` reports what was
        really taken.

    Attributes:
        dreams: labelled batches of this process; after `restore` also the last one before it.
        resumed: how often the run was gone on with.
    """

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
        self.config = resolve(config)
        self.stopwatch = Stopwatch()
        self.dreams: list[LabelledDreams] = []
        self.unlabelled_rounds = 0
        self.resumed = 0
        self._progress = progress or NoProgress()
        self._has_twins = compare_independent
        self._seed = self.config.run.seed or 0
        self._device = choose_device(self.config.run.device)
        chosen = self.config.data
        data = dataset or load_dataset(
            chosen.dataset, Path(chosen.data_dir), image_size=chosen.image_size
        )
        self._check_threshold()
        self.federation = Federation(self.config, data, self._device, keep)
        self.observer = self.federation.observer()
        self.ledger = ByteLedger(self.federation.roster)
        self.aggregator = self._aggregator(self.federation.roster, tap)
        self.groups = self._groups()
        everybody = self.federation
        self.server = Server(
            self.config,
            self.aggregator,
            self.groups,
            everybody.student,
            plan=everybody.plan,
            per_class=everybody.per_class,
        )
        self._reported_weights: dict[str, Weights] | None = None

    # -- the run ---------------------------------------------------------------------------

    def rounds(self) -> Iterator[Measurement]:
        """Run round after round; each yields what the observer measured.

        After `restore` these are the rounds that are left.
        """
        finished = len(self.observer.history)
        with one_core_each():
            if not finished:
                self._release_class_means()
                with self.stopwatch.measure("local_training"):
                    self.warm_up()
            for number in range(finished + 1, self._rounds + 1):
                with self.stopwatch.measure("dreaming"):
                    self._dream(number)
                with self.stopwatch.measure("acquisition"):
                    self._acquire(number)
                yield self._measure(number)

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
        """Train every client on its own data before the first dream."""
        everybody = self.federation
        steps = warmup_steps(self.config, everybody.plan, everybody.share)

        def train(member: Member) -> None:
            for _ in range(steps):
                member.client.learner.local_step()

        self._for_each_member("local training", train)

    def _for_each_member(self, activity: str, work: Callable[[Member], None]) -> None:
        """Let every member do ``work``, then let the independent twins catch up."""
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

    def _dream(self, number: int) -> None:
        """Synthesise the round's batches; those whose labels were aborted are left out."""
        dream = self.config.dream
        total = len(self.groups) * dream.syntheses * dream.sums_per_synthesis
        self._progress.start(f"round {number} of {self._rounds}: dream steps", total)
        self.ledger.begin_round(number)
        found = self.server.dream(number, self._progress.advance)
        self.dreams += found
        self.unlabelled_rounds += not found

    def _acquire(self, number: int) -> None:
        """Let everybody learn from dreams, and the independent twins from their data."""
        everybody = self.federation
        settings = acquisition_settings(self.config, everybody.plan, everybody.share, number)
        buffers = {c: group.buffer for group in self.groups for c in group.members}

        def learn(member: Member) -> None:
            shuffle = generator(self._seed, "acquisition", number, member.identity)
            acquire(member.client.learner, buffers[member.identity], settings, shuffle)

        self._for_each_member(f"round {number} of {self._rounds}: knowledge acquisition", learn)
        if self._collaborates:
            self.server.distil(number)

    def _measure(self, number: int) -> Measurement:
        """Let the observer measure, and keep the models of the round that a report quotes."""
        everybody = self.federation
        measurement = self.observer.measure(
            number,
            everybody.client_models(),
            everybody.twin_models() if self._has_twins else {},
            everybody.student.model if self._collaborates else None,
        )
        if self.observer.reported() is measurement:
            self._reported_weights = self._weights()
        return measurement

    # -- checkpoints -----------------------------------------------------------------------

    @cached_property
    def _data_digest(self) -> str:
        return self.federation.data_digest()

    def state(self, *, checkpoint_every: int) -> RunState:
        """Return the run as it is between two rounds."""
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
            statistics=self._statistics(),
            unlabelled_rounds=self.unlabelled_rounds,
            bytes=self.ledger.state(),
            stopwatch=self.stopwatch.state(),
        )

    def _statistics(self) -> StatisticsState | None:
        plan = self.federation.plan
        if plan is None or (shares := plan.class_mean_shares) is None:
            return None
        return StatisticsState(
            means=None if self.server.images is None else self.server.images.means,
            shares=shares,
        )

    def restore(self, state: RunState, charged: int = 0) -> None:
        """Become the run that ``state`` was taken of; call it before `rounds`.

        Args:
            state: of the same configuration and the same data.
            charged: private steps that were reserved, also after the state was taken.

        Raises:
            UserError: the state is of other data.
            ValueError, RuntimeError, KeyError: the state does not fit; this object is of no use.
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
        elif everybody.plan:
            self._restore_private_training(everybody.plan, state, charged)

    def _restore_private_training(self, plan: PrivacyPlan, state: RunState, charged: int) -> None:
        taken = max(m.client.learner.local_steps for m in state.members.values())
        if charged < taken:
            raise ValueError(f"{taken} private steps were taken and {charged} charged")
        plan.restore(charged)
        if (kept := state.statistics) is not None:
            plan.restore_class_means(kept.shares)
            if kept.means is not None:
                self.server.start_dreams_from(ClassMeanImages(kept.means))

    # -- results ---------------------------------------------------------------------------

    def weights(self) -> dict[str, Weights]:
        """Return the state of all models by name, as they were after the reported round."""
        return self._reported_weights or self._weights()

    def _weights(self) -> dict[str, Weights]:
        models = {f"client-{c}": m for c, m in self.federation.client_models().items()}
        if self._collaborates:
            models["server"] = self.federation.student.model
        return {name: _state(model) for name, model in models.items()}

    def guarantee(self) -> Guarantee | None:
        """Return the privacy of what was really run; None without DP."""
        budget = self.federation.budget
        return budget.guarantee() if budget else None

    def epsilon(self) -> float | None:
        """Return the epsilon of `guarantee` so far, at a fraction of its time; None without DP."""
        budget = self.federation.budget
        return budget.epsilon() if budget else None

    @property
    def iterations(self) -> float:
        """What a client has computed, mean: forward and backward passes over a local batch.

        Local training, dreaming and distillation count; independent training, which only serves
        to compare, does not.
        """
        work = [m.client.learner.work for m in self.federation.members.values()]
        return sum(w.iterations(self.config.learning.batch) for w in work) / len(work)

    @property
    def rolled_back(self) -> int:
        """Dream or generator steps whose result was not finite and was taken back."""
        return sum(group.rolled_back for group in self.groups)

    @property
    def _rounds(self) -> int:
        return self.config.dream.rounds

    @property
    def _sums_per_synthesis(self) -> int:
        """Aggregations that a synthesis takes; where clients are private, that of labels alone."""
        return 1 if self.config.private_clients else self.config.dream.sums_per_synthesis

    @property
    def _releases(self) -> int:
        """Aggregations before the first round: one if there are class means."""
        plan = self.federation.plan
        return int(plan is not None and plan.class_means is not None)

    @property
    def _collaborates(self) -> bool:
        return self.config.dream.collaboration

    # -- settings --------------------------------------------------------------------------

    def _check_threshold(self) -> None:
        n, threshold = self.config.data.clients, self.config.secure.threshold
        if threshold is not None and not n // 2 < threshold <= n:
            raise UserError(
                f"--threshold must be {n // 2 + 1} to {n} for {n} clients, not {threshold}"
            )

    def _groups(self) -> list[DreamGroup]:
        """Return the one group of everybody, or a group of every client."""
        everybody = self.federation
        if self._collaborates:
            return [self._group((), tuple(everybody.roster), self.aggregator)]
        return [self._group(("client", c), (c,), self._alone(c)) for c in everybody.roster]

    def _group(
        self, name: tuple[str | int, ...], members: tuple[int, ...], aggregator: Aggregator
    ) -> DreamGroup:
        everybody = self.federation
        return DreamGroup(
            name,
            {c: everybody.members[c].client for c in members},
            aggregator,
            self.config,
            everybody.spec,
            everybody.scale,
            self._device,
            self._weight_cap,
            everybody.label_plan,
        )

    @property
    def _weight_cap(self) -> int:
        """W: public, since it follows from how many examples all clients have together."""
        learning = self.config.learning
        if learning.weights == "equal":
            return 0
        return learning.weight_cap or WEIGHT_CAP_SHARES * self.federation.share

    def _alone(self, client: int) -> Aggregator:
        """Return an aggregator of one: what it sums is not sent, and its bytes count nowhere."""
        answers = {client: self.federation.members[client].client.answer}
        settings = AggregationSettings(roster=(client,))
        return PlainAggregator(answers, settings, Meters(ByteLedger((client,))))

    def _aggregator(self, roster: tuple[int, ...], tap: Tap | None) -> Aggregator:
        answers = {c: self.federation.members[c].client.answer for c in roster}
        secure, sums = self.config.secure, self._sums_per_synthesis
        settings = AggregationSettings(
            roster=roster,
            threshold=secure.threshold,
            threat_model=secure.threat_model,
            rejoin=secure.rejoin,
            key_steps=secure.key_steps or sums,
            expected_steps=self._rounds * self.config.dream.syntheses * sums + self._releases,
            dropout=secure.dropout,
            seed=self._seed,
        )
        meters = Meters(self.ledger, self.stopwatch)
        if secure.secure and self._collaborates:
            return SecureAggregator(answers, settings, meters, session=os.urandom(32), tap=tap)
        return PlainAggregator(answers, settings, meters)


def _state(model: nn.Module) -> Weights:
    # Stored in the usual layout, whatever that of convolutions while they are trained.
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
