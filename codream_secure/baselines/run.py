"""One run of a baseline: the counterpart of `simulation.Simulation`."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.baselines.avgkd import AvgKD
from codream_secure.baselines.base import Baseline, BaselineSettings, Parties, Party
from codream_secure.baselines.centralized import Centralized
from codream_secure.baselines.dpsgd import DistributedDpSgd
from codream_secure.baselines.exchange import ModelExchange
from codream_secure.baselines.fedavg import FedAvg
from codream_secure.baselines.fedgen import FedGen
from codream_secure.baselines.fedprox import FedProx
from codream_secure.baselines.independent import Independent
from codream_secure.baselines.methods import PRIVATE_SUMS, Method
from codream_secure.baselines.moon import Moon
from codream_secure.baselines.scaffold import Scaffold
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.errors import UserError
from codream_secure.federation.members import Federation
from codream_secure.federation.observer import Measurement
from codream_secure.federation.simulation import NoProgress, Progress, choose_device
from codream_secure.learning.compute import Work
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.privacy.release_plan import ReleasePlan
from codream_secure.runtime.parallel import one_core_each
from codream_secure.runtime.stopwatch import Stopwatch

_FAMILIES: dict[str, type[Baseline]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "moon": Moon,
    "fedgen": FedGen,
    "avgkd": AvgKD,
    PRIVATE_SUMS: DistributedDpSgd,
    "independent": Independent,
    "centralized": Centralized,
}
# These exchange nothing, or models that need not be alike. Of several architectures,
# `centralized` trains the first: the server student's.
_ANY_MODELS = ("avgkd", "independent", "centralized")


# These can be had under --dp-eps: by DP-SGD at every client, or by noisy sums.
_PRIVATE = ("fedavg", "independent", PRIVATE_SUMS)


class BaselineRun:
    """A baseline over the data, seeds and evaluation of `Simulation`.

    Guarantee:
        With ``dp_eps`` a client's data is touched by its own DP-SGD steps alone, or by noisy sums
        alone, at most ``dp_steps`` of them, whose noise was computed for that total; what else is
        sent and averaged is post-processing. `guarantee` reports what was really taken.

    Args:
        config: settings of data, models, seeds and failures; those of dreams play no part.
        method: none of those that dream.
        settings: of baselines.
        dataset: in place of the one that the settings name.
        progress: told what is going on.

    Raises:
        UserError: the method cannot be run with these settings.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        settings: BaselineSettings,
        *,
        dataset: Dataset | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.method = _without_dreams(resolve(config)), method
        self.settings = settings
        self.stopwatch = Stopwatch()
        self._progress = progress or NoProgress()
        if self.config.private and method.family not in _PRIVATE:
            raise UserError(
                f"{method.name}: not available with --dp-eps; {', '.join(_PRIVATE)} are"
            )
        if method.family == PRIVATE_SUMS and not self.config.private:
            raise UserError(f"{PRIVATE_SUMS} needs --dp-eps; without it, fedavg-secure")
        if self.config.private_clients:
            raise UserError(f"{method.name}: not available with --dp-unit client; codream is")
        chosen = self.config.data
        data = dataset or load_dataset(
            chosen.dataset, Path(chosen.data_dir), image_size=chosen.image_size
        )
        self.federation = Federation(self.config, data, choose_device(self.config.run.device))
        if method.family not in _ANY_MODELS and len(set(self.federation.model_names)) > 1:
            raise UserError(f"{method.name} needs one architecture for all clients")
        self.observer = self.federation.observer()
        self.ledger = ByteLedger(self.federation.roster)
        meters = Meters(self.ledger, self.stopwatch)
        self.exchange = ModelExchange(
            method,
            self._aggregation(),
            meters,
            seed=self.config.run.seed or 0,
            session=os.urandom(32),
            weights=self._weights(),
        )
        self._clients = {c: self._party(c) for c in self.federation.roster}
        parties = Parties(self.federation, settings, self.exchange, meters, self._clients)
        with one_core_each():
            self.baseline = _FAMILIES[method.family](parties)

    def rounds(self) -> Iterator[Measurement]:
        """Run round after round, without an end; each yields what the observer measured."""
        number = 0
        while True:
            number += 1
            self.ledger.begin_round(number)
            self._progress.start(f"{self.method.name}: round {number}", 1)
            with one_core_each():
                with self.stopwatch.measure("local_training"):
                    self.baseline.round(number)
                measurement = self.observer.measure(
                    number,
                    self.baseline.client_models(),
                    {},
                    self.baseline.server_model(),
                )
            self._progress.advance()
            yield measurement

    def guarantee(self) -> Guarantee | None:
        """Return the privacy of what was really run; None without DP."""
        plan = self._charged_plan
        return plan.guarantee() if plan else None

    def epsilon(self) -> float | None:
        """Return the epsilon of `guarantee` so far, at a fraction of its time; None without DP."""
        plan = self._charged_plan
        return plan.epsilon() if plan else None

    @property
    def _charged_plan(self) -> PrivacyPlan | ReleasePlan | None:
        """The plan whose releases this method makes."""
        baseline = self.baseline
        return baseline.plan if isinstance(baseline, DistributedDpSgd) else self.federation.plan

    @property
    def iterations(self) -> float:
        """What a client has computed, mean: forward and backward passes over a local batch."""
        batch = self.config.learning.batch
        return sum(p.work.iterations(batch) for p in self._clients.values()) / len(self._clients)

    def _party(self, client: int) -> Party:
        batches = self.federation.local_batches(client, "baseline")
        per_epoch = max(1, len(self.federation.examples(client).y) // batches.size)
        return Party(client, batches, per_epoch * self.settings.local_epochs, Work())

    def _weights(self) -> dict[int, int] | None:
        if self.config.learning.weights == "equal":
            return None
        return {c: len(self.federation.examples(c).y) for c in self.federation.roster}

    def _aggregation(self) -> AggregationSettings:
        secure, n = self.config.secure, len(self.federation.roster)
        if secure.threshold is not None and not n // 2 < secure.threshold <= n:
            raise UserError(f"--threshold must be {n // 2 + 1} to {n} for {n} clients")
        return AggregationSettings(
            roster=self.federation.roster,
            threshold=secure.threshold,
            threat_model=secure.threat_model,
            rejoin=secure.rejoin,
            key_steps=secure.key_steps or 1,
            dropout=secure.dropout,
            seed=self.config.run.seed or 0,
        )


def _without_dreams(config: Resolved) -> Resolved:
    """Return the settings without what only dreams begin with: all of epsilon is for training."""
    if not config.private:
        return config
    return dataclasses.replace(
        config, privacy=dataclasses.replace(config.privacy, statistics_eps=0.0)
    )
