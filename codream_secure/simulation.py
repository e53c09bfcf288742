"""A whole federation on one machine: clients, server and rounds.

Read `Simulation.rounds` first: it is the run from beginning to end.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_secure.acquisition import AcquisitionSettings, DreamBuffer, acquire, distil
from codream_secure.aggregation import (
    AggregationSettings,
    Aggregator,
    Meters,
    PlainAggregator,
    SecureAggregator,
)
from codream_secure.client import Client, Policy
from codream_secure.communication import ByteLedger
from codream_secure.config import Config, resolve
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.data.partition import Indices, partition, split_validation
from codream_secure.dreaming.pixels import PixelScale
from codream_secure.dreaming.synthesis import (
    ClipState,
    DreamSynthesis,
    LabelledDreams,
    SynthesisSettings,
)
from codream_secure.errors import UserError
from codream_secure.learner import BatchStream, Learner, PlainLearner, PrivateLearner
from codream_secure.models import Norm, build_model
from codream_secure.observer import Examples, Measurement, Observer
from codream_secure.parallel import in_parallel, one_core_each
from codream_secure.privacy.accounting import Guarantee
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.seeds import derive_bytes, derive_seed, generator
from codream_secure.stopwatch import Stopwatch
from protocols.driver import Tap

_T = TypeVar("_T")


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


@dataclass(slots=True)
class Member:
    """One client of the simulation, its data for the observer, and its independent twin."""

    identity: int
    client: Client
    twin: Learner
    validation: Examples | None


def _train_twin(member: Member) -> None:
    """Let independent training take as many local steps as the client has taken."""
    while member.twin.local_steps < member.client.learner.local_steps:
        member.twin.local_step()


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
        self._dataset = dataset or load_dataset(
            self.config.data.dataset, Path(self.config.data.data_dir)
        )
        self.spec = self._dataset.spec
        self._scale = PixelScale(self._dataset.scaling, self._device)
        self.roster = tuple(range(self.config.data.clients))
        self.model_names = self._model_names()
        self._check()
        self.plan = PrivacyPlan.of(self.config, examples=len(self._dataset.y_train))
        self._members = self._build_members()
        self._student = PlainLearner(
            self._model(self.model_names[0], "server"), None, self.config.learning.learning_rate
        )
        self.ledger = ByteLedger(self.roster)
        self.aggregator = self._build_aggregator(tap)
        self._clip = ClipState()
        self._buffer = DreamBuffer(self.config.learning.buffer)
        self.observer = self._build_observer(self._dataset)

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
        self._progress.start(activity, len(self._members))
        for _ in in_parallel(work, self._members.values()):
            self._progress.advance()
        with self.stopwatch.measure("independent"):
            self._progress.start("independent training, to compare", len(self._members))
            for _ in in_parallel(_train_twin, self._members.values()):
                self._progress.advance()

    def _dream(self, number: int) -> list[LabelledDreams]:
        """Synthesise the round's batches; those whose labels were aborted are left out."""
        settings = self.config.dream
        for member in self._members.values():
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
            self.spec,
            self._scale,
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
            self._buffer.add(self._scale.from_pixels(item.pixels), item.targets.to(self._device))
        settings = self._acquisition_settings(number)

        def learn(member: Member) -> None:
            shuffle = generator(self._seed, "acquisition", number, member.identity)
            acquire(member.client.learner, self._buffer, settings, shuffle)

        self._for_each_member(f"round {number} of {self._rounds}: knowledge acquisition", learn)
        shuffle = generator(self._seed, "acquisition", number, "server")
        distil(self._student, self._buffer, settings, shuffle)

    def _measure(self, number: int) -> Measurement:
        return self.observer.measure(
            number,
            self.client_models(),
            {c: member.twin.model for c, member in self._members.items()},
            self._student.model,
        )

    # -- results ---------------------------------------------------------------------------

    def client_models(self) -> dict[int, nn.Module]:
        """Return the clients' models by id (for the observer and for saving)."""
        return {c: member.client.learner.model for c, member in self._members.items()}

    def server_model(self) -> nn.Module:
        """Return the server's student."""
        return self._student.model

    def guarantee(self) -> Guarantee | None:
        """Return the privacy of what was really run; None without DP."""
        return self.plan.guarantee() if self.plan else None

    @property
    def _rounds(self) -> int:
        return _set(self.config.dream.rounds)

    @property
    def _dream_steps(self) -> int:
        return _set(self.config.dream.dream_steps)

    # -- construction ----------------------------------------------------------------------

    def _check(self) -> None:
        n, secure = len(self.roster), self.config.secure
        if secure.threshold is not None and not n // 2 < secure.threshold <= n:
            raise UserError(
                f"--threshold must be {n // 2 + 1} to {n} for {n} clients, not {secure.threshold}"
            )

    def _model_names(self) -> tuple[str, ...]:
        names = [name.strip() for name in self.config.model.models.split(",")]
        return tuple(names[c % len(names)] for c in self.roster)

    def _model(self, name: str, *owner: str | int, seeded: bool = True) -> nn.Module:
        seed = derive_seed(self._seed, "model", *owner) if seeded else None
        norm: Norm = "group" if self.config.model.norm == "group" else "batch"
        model = build_model(name, self.spec, width=self.config.model.width, norm=norm, seed=seed)
        return model.to(self._device)

    def _build_members(self) -> dict[int, Member]:
        data = self._dataset
        parts = partition(
            data.y_train,
            len(self.roster),
            self.config.data.partition,
            derive_seed(self._seed, "partition"),
        )
        return {c: self._build_member(c, parts[c]) for c in self.roster}

    def _build_member(self, c: int, rows: Indices) -> Member:
        validation = None
        labels = self._dataset.y_train
        if self.config.data.validation:
            rows, held_out = split_validation(
                rows, labels, self.config.data.validation, derive_seed(self._seed, "validation", c)
            )
            validation = self._examples(self._dataset.x_train[held_out], labels[held_out])
        local = self._examples(self._dataset.x_train[rows], labels[rows])
        client = Client(
            self._learner(c, local, "client"),
            self._scale,
            derive_bytes(self._seed, "rounding", c),
            Policy(allow_feature_statistics=not self.config.private),
        )
        return Member(c, client, self._learner(c, local, "twin"), validation)

    def _learner(self, c: int, local: Examples, role: str) -> Learner:
        """Build a client's learner or its twin's: same first weights, streams of their own."""
        name, learning = self.model_names[c], self.config.learning
        if self.plan:
            model = self._model(name, c, seeded=self.plan.seed is not None)
            trainer = self.plan.trainer(model, role, c)
            return PrivateLearner(trainer, (local.x, local.y), learning.learning_rate)
        shuffle = generator(self._seed, role, "shuffle", c)
        stream = BatchStream(local.x, local.y, learning.batch, shuffle)
        return PlainLearner(self._model(name, c), stream, learning.learning_rate)

    def _build_aggregator(self, tap: Tap | None) -> Aggregator:
        answers = {c: member.client.answer for c, member in self._members.items()}
        secure = self.config.secure
        settings = AggregationSettings(
            roster=self.roster,
            threshold=secure.threshold,
            dropout=secure.dropout,
            seed=self._seed,
        )
        meters = Meters(self.ledger, self.stopwatch)
        if secure.secure:
            return SecureAggregator(answers, settings, meters, session=os.urandom(32), tap=tap)
        return PlainAggregator(answers, settings, meters)

    def _build_observer(self, data: Dataset) -> Observer:
        validation = {
            c: member.validation for c, member in self._members.items() if member.validation
        }
        return Observer(self._examples(data.x_test, data.y_test), validation)

    def _examples(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> Examples:
        return Examples(
            self._scale.scale(torch.from_numpy(images)), torch.from_numpy(labels).to(self._device)
        )

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
        share = len(self._dataset.y_train) // len(self.roster)
        return max(1, share // self.config.learning.batch)

    @property
    def _warmup_steps(self) -> int:
        if self.plan:
            return self.plan.warmup_steps
        return self.config.learning.warmup_epochs * self._steps_per_epoch

    def _acquisition_settings(self, number: int) -> AcquisitionSettings:
        learning = self.config.learning
        if self.plan:
            local_steps = self.plan.round_steps(number)
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
