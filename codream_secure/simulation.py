"""A whole federation on one machine, round by round.

Read `Simulation.rounds` first: it is the run from beginning to end.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from codream_secure.acquisition import AcquisitionSettings, DreamBuffer, acquire, distil
from codream_secure.aggregation import (
    Aggregator,
    Meters,
    PlainAggregator,
    SecureAggregator,
)
from codream_secure.attendance import AggregationSettings
from codream_secure.communication import ByteLedger
from codream_secure.config import Config, resolve
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.dreaming.synthesis import (
    ClipState,
    DreamSynthesis,
    LabelledDreams,
    SynthesisSettings,
)
from codream_secure.errors import UserError
from codream_secure.federation import Federation, Member
from codream_secure.observer import Measurement
from codream_secure.parallel import in_parallel, one_core_each
from codream_secure.privacy.accounting import Guarantee
from codream_secure.seeds import generator
from codream_secure.stopwatch import Stopwatch
from protocols.driver import Tap

_T = TypeVar("_T")
Weights = dict[str, Tensor]


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

    Raises:
        UserError: the settings cannot be run.

    Guarantee:
        With ``dp_eps`` every client's models are (epsilon, delta)-DP with respect to adding or
        removing one of its examples: local data is touched by DP-SGD steps alone, at most
        ``dp_steps`` of them, whose noise was computed for that total; dreams, labels and
        distillation are post-processing. `guarantee` reports what was really taken.
    """

    def __init__(
        self,
        config: Config,
        *,
        dataset: Dataset | None = None,
        progress: Progress | None = None,
        tap: Tap | None = None,
    ) -> None:
        self.config = resolve(config)
        self.stopwatch = Stopwatch()
        self.dreams: list[LabelledDreams] = []
        self.unlabelled_rounds = 0
        self._progress = progress or NoProgress()
        self._seed = self.config.run.seed or 0
        self._device = choose_device(self.config.run.device)
        data = dataset or load_dataset(self.config.data.dataset, Path(self.config.data.data_dir))
        self._check_threshold()
        self.federation = Federation(self.config, data, self._device)
        self.observer = self.federation.observer()
        self.ledger = ByteLedger(self.federation.roster)
        self.aggregator = self._aggregator(tap)
        self._clip = ClipState()
        self._buffer = DreamBuffer(self.config.learning.buffer)
        self._reported_weights: dict[str, Weights] | None = None

    # -- the run ---------------------------------------------------------------------------

    def rounds(self) -> Iterator[Measurement]:
        """Run round after round; each yields what the observer measured."""
        with one_core_each():
            with self.stopwatch.measure("local_training"):
                self._warm_up()
            for number in range(1, self._rounds + 1):
                with self.stopwatch.measure("dreaming"):
                    labelled = self._dream(number)
                with self.stopwatch.measure("acquisition"):
                    self._acquire(number, labelled)
                yield self._measure(number)

    def _warm_up(self) -> None:
        """Train every client on its own data before the first dream."""

        def train(member: Member) -> None:
            for _ in range(self._warmup_steps):
                member.client.learner.local_step()

        self._for_each_member("local training", train)

    def _for_each_member(self, activity: str, work: Callable[[Member], None]) -> None:
        """Let every member do ``work``, then let the independent twins catch up."""
        members = self.federation.members.values()
        self._progress.start(activity, len(members))
        for _ in in_parallel(work, members):
            self._progress.advance()
        with self.stopwatch.measure("independent"):
            self._progress.start("independent training, to compare", len(members))
            for _ in in_parallel(Member.train_twin, members):
                self._progress.advance()

    def _dream(self, number: int) -> list[LabelledDreams]:
        """Synthesise the round's batches; those whose labels were aborted are left out."""
        settings = self.config.dream
        for member in self.federation.members.values():
            member.client.freeze_teacher()
        total = settings.dream_batches * (self._dream_steps + 1)
        self._progress.start(f"round {number} of {self._rounds}: dream steps", total)
        labelled = [
            result
            for batch in range(settings.dream_batches)
            if (result := self._synthesise(number, batch)) is not None
        ]
        self.unlabelled_rounds += not labelled
        self.dreams.extend(labelled)
        return labelled

    def _synthesise(self, number: int, batch: int) -> LabelledDreams | None:
        synthesis = DreamSynthesis(
            self.federation.spec,
            self.federation.scale,
            self._synthesis_settings(),
            clip=self._clip,
            noise=generator(self._seed, "dreams", number, batch),
            position=(number, batch),
        )
        for _ in range(self._dream_steps):
            synthesis.dream_step(self.aggregator)
            self._progress.advance()
        result = synthesis.label(self.aggregator)
        self._progress.advance()
        return result

    def _acquire(self, number: int, labelled: list[LabelledDreams]) -> None:
        """Let everybody learn from the buffer, and the independent twins from their data."""
        for item in labelled:
            self._buffer.add(
                self.federation.scale.from_pixels(item.pixels), item.targets.to(self._device)
            )
        settings = self._acquisition_settings(number)

        def learn(member: Member) -> None:
            shuffle = generator(self._seed, "acquisition", number, member.identity)
            acquire(member.client.learner, self._buffer, settings, shuffle)

        self._for_each_member(f"round {number} of {self._rounds}: knowledge acquisition", learn)
        shuffle = generator(self._seed, "acquisition", number, "server")
        distil(self.federation.student, self._buffer, settings, shuffle)

    def _measure(self, number: int) -> Measurement:
        """Let the observer measure, and keep the models of the round that a report quotes."""
        everybody = self.federation
        measurement = self.observer.measure(
            number, everybody.client_models(), everybody.twin_models(), everybody.student.model
        )
        if self.observer.reported() is measurement:
            self._reported_weights = self._weights()
        return measurement

    # -- results ---------------------------------------------------------------------------

    def weights(self) -> dict[str, Weights]:
        """Return the state of all models by name, as they were after the reported round."""
        return self._reported_weights or self._weights()

    def _weights(self) -> dict[str, Weights]:
        models = {f"client-{c}": m for c, m in self.federation.client_models().items()}
        models["server"] = self.federation.student.model
        return {name: _state(model) for name, model in models.items()}

    def guarantee(self) -> Guarantee | None:
        """Return the privacy of what was really run; None without DP."""
        plan = self.federation.plan
        return plan.guarantee() if plan else None

    @property
    def _rounds(self) -> int:
        return _set(self.config.dream.rounds)

    @property
    def _dream_steps(self) -> int:
        return _set(self.config.dream.dream_steps)

    # -- settings --------------------------------------------------------------------------

    def _check_threshold(self) -> None:
        n, threshold = self.config.data.clients, self.config.secure.threshold
        if threshold is not None and not n // 2 < threshold <= n:
            raise UserError(
                f"--threshold must be {n // 2 + 1} to {n} for {n} clients, not {threshold}"
            )

    def _aggregator(self, tap: Tap | None) -> Aggregator:
        answers = {c: member.client.answer for c, member in self.federation.members.items()}
        secure = self.config.secure
        settings = AggregationSettings(
            roster=self.federation.roster,
            threshold=secure.threshold,
            threat_model=secure.threat_model,
            rejoin=secure.rejoin,
            key_steps=secure.key_steps or self._dream_steps + 1,
            expected_steps=self._rounds * self.config.dream.dream_batches * (self._dream_steps + 1),
            dropout=secure.dropout,
            seed=self._seed,
        )
        meters = Meters(self.ledger, self.stopwatch)
        if secure.secure:
            return SecureAggregator(answers, settings, meters, session=os.urandom(32), tap=tap)
        return PlainAggregator(answers, settings, meters)

    def _synthesis_settings(self) -> SynthesisSettings:
        dream, learning = self.config.dream, self.config.learning
        return SynthesisSettings(
            dreams=_set(dream.dreams),
            dream_steps=self._dream_steps,
            dream_lr=_set(dream.dream_lr),
            bits=dream.bits,
            entropy_weight=dream.entropy_weight,
            bn_weight=_set(dream.bn_weight),
            balance_weight=dream.balance_weight,
            tv_weight=dream.tv_weight,
            l2_weight=dream.l2_weight,
            labels=learning.labels,
            label_bits=learning.label_bits,
            label_clip=learning.label_clip,
            kd_temperature=learning.kd_temperature,
        )

    @property
    def _steps_per_epoch(self) -> int:
        return max(1, self.federation.share // self.config.learning.batch)

    @property
    def _warmup_steps(self) -> int:
        if plan := self.federation.plan:
            return plan.warmup_steps
        return self.config.learning.warmup_epochs * self._steps_per_epoch

    def _acquisition_settings(self, number: int) -> AcquisitionSettings:
        learning = self.config.learning
        if plan := self.federation.plan:
            local_steps = plan.round_steps(number)
        else:
            local_steps = learning.local_epochs * self._steps_per_epoch
        return AcquisitionSettings(
            order=learning.acquisition,
            kd_epochs=learning.kd_epochs,
            kd_batch=learning.kd_batch,
            kd_temperature=learning.kd_temperature,
            local_steps=local_steps,
        )


def _set(value: _T | None) -> _T:
    """Return a value that `resolve` has filled in."""
    if value is None:
        raise ValueError("the configuration was not resolved")
    return value


def _state(model: nn.Module) -> Weights:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
