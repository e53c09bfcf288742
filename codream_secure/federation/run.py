"""The common interface of all methods that run on one machine: CoDream and the baselines.

Whatever stores, shows or compares runs needs `Run` only, and never asks which method it is.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_secure.aggregation.aggregator import Aggregator, Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.graph import mask_graph
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.config.resolved import Resolved
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.data.doubts import doubts
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import UserError
from codream_secure.federation.members import Federation
from codream_secure.federation.memory import check_memory
from codream_secure.federation.observer import Measurement
from codream_secure.federation.rounds import NoProgress, Progress, RoundLoop
from codream_secure.learning.compute import Work
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.privacy.plan import AnyPlan
from codream_secure.runtime.stopwatch import Stopwatch
from codream_secure.storage.checkpoint import Weights


def choose_device(name: str) -> torch.device:
    """Return the device that ``--device`` names: "cpu", "cuda", or "auto" for CUDA if there is one.

    Raises:
        UserError: CUDA was asked for and PyTorch finds none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Run(RoundLoop[Measurement]):
    """One method over one federation on this machine, measured by an observer.

    Args:
        config: resolved settings.
        dataset: used instead of the dataset that the settings name.
        progress: follows what happens inside a round.
        keep: which training examples take part (see `Federation`).

    Attributes:
        aggregator: sums the clients' answers; None: the method sums nothing.
        dreams: labelled dream batches of this process; after a restart, also the last one before
            it. Empty for methods that do not dream.
        unlabelled_rounds: rounds of a dreaming method that brought no labelled batch.
        resumed: how often the run was continued from a checkpoint.
        doubts: what is suspicious about the data, in sentences.
        budget_spent: share of its budget that the run has spent, 0 to 1, kept by whoever ends it
            when a budget is spent; None: the number of rounds is known.

    Raises:
        UserError: the settings cannot be run.
    """

    # Whether the method makes dreams: a baseline reports none of their figures.
    makes_dreams = False
    aggregator: Aggregator | None

    def __init__(
        self,
        config: Resolved,
        *,
        dataset: Dataset | None = None,
        progress: Progress | None = None,
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.stopwatch = Stopwatch()
        self.dreams: list[LabelledDreams] = []
        self.unlabelled_rounds = 0
        self.resumed = 0
        self.budget_spent: float | None = None
        self._progress = progress or NoProgress()
        self._seed = config.run.seed or 0
        device = choose_device(config.run.device)
        chosen = config.data
        data = dataset or load_dataset(
            chosen.dataset, Path(chosen.data_dir), image_size=chosen.image_size
        )
        self.doubts = doubts(data)
        _check_threshold(config)
        dealt = config.data.clients * (config.data.samples_per_client or len(data.y_train))
        check_memory(
            config,
            data.spec,
            min(dealt, len(data.y_train)) + len(data.y_test),
            device,
            averages=not self.makes_dreams,
        )
        self.federation = Federation(config, data, device, keep)
        self.observer = self.federation.observer()
        self.ledger = ByteLedger(self.federation.roster)
        self._meters = Meters(self.ledger, self.stopwatch)

    # -- what a method says of itself ----------------------------------------------------------

    @property
    @abstractmethod
    def method_name(self) -> str:
        """The name under which the method is compared."""

    @property
    @abstractmethod
    def masked(self) -> bool:
        """Whether what clients send is masked."""

    @property
    def method_settings(self) -> Mapping[str, Any]:
        """Settings of the method that `Config` does not hold."""
        return {}

    @property
    def rolled_back(self) -> int:
        """Dream or generator steps that were undone because their result was not finite."""
        return 0

    # -- models, privacy, work -----------------------------------------------------------------

    @abstractmethod
    def client_models(self) -> Mapping[int, nn.Module]:
        """Return what each client holds at the end of a round, by client id."""

    @abstractmethod
    def server_model(self) -> nn.Module | None:
        """Return the one model for all; None: the method has none."""

    def twin_models(self) -> Mapping[int, nn.Module]:
        """Return models of independent training that run beside the clients, by client id."""
        return {}

    def weights(self) -> dict[str, Weights]:
        """Return the weights of all models by name ("client-0", …, "server"), on the CPU."""
        models = {f"client-{c}": model for c, model in self.client_models().items()}
        if (server := self.server_model()) is not None:
            models["server"] = server
        return {name: _weights_of(model) for name, model in models.items()}

    @property
    def budget(self) -> AnyPlan | None:
        """The budget that private releases are charged to; None without DP."""
        return self.federation.budget

    def guarantee(self) -> Guarantee | None:
        """Return the privacy of what was really released so far; None without DP."""
        return None if self.budget is None else self.budget.guarantee()

    def epsilon(self) -> float | None:
        """Return the epsilon of `guarantee`, in a fraction of its time; None without DP."""
        return None if self.budget is None else self.budget.epsilon()

    @property
    def iterations(self) -> float:
        """Work of one client (mean over clients), in training steps on one local minibatch.

        Local training, dreaming and distillation count. Independent training beside them does
        not, because it only serves to compare.
        """
        work, batch = self._work(), self.config.learning.batch
        return sum(one.iterations(batch) for one in work) / len(work)

    @abstractmethod
    def _work(self) -> Sequence[Work]:
        """Return what each client has computed so far."""

    # -- for the round loop --------------------------------------------------------------------

    @property
    def finished_rounds(self) -> int:
        """Rounds that the observer has measured."""
        return len(self.observer.history)

    def prepare(self) -> None:
        """Do nothing: most methods need no preparation."""

    def _measure(self, number: int) -> Measurement:
        """Let the observer measure all models at the end of a round."""
        return self.observer.measure(
            number, self.client_models(), self.twin_models(), self.server_model()
        )

    def _aggregation_settings(
        self, key_steps: int, expected_steps: int | None = None
    ) -> AggregationSettings:
        """Return who takes part in sums; the arguments are those of `AggregationSettings`."""
        secure = self.config.secure
        steps = secure.key_steps or key_steps
        return AggregationSettings(
            roster=self.federation.roster,
            threshold=secure.threshold,
            threat_model=secure.threat_model,
            rejoin=secure.rejoin,
            key_steps=steps,
            expected_steps=expected_steps,
            dropout=secure.dropout,
            seed=self._seed,
            graph=mask_graph(self.config, steps),
        )


def _check_threshold(config: Resolved) -> None:
    """Raise UserError unless two disjoint sets of clients cannot both reach it (SPEC 2.1)."""
    n, threshold = config.data.clients, config.secure.threshold
    if threshold is not None and not n // 2 < threshold <= n:
        raise UserError(f"--threshold must be {n // 2 + 1} to {n} for {n} clients, not {threshold}")


def _weights_of(model: nn.Module) -> Weights:
    # `channels_last` is a layout for training only; files have the usual one.
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
