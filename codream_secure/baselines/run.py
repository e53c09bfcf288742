"""One run of a baseline: the counterpart of `federation.simulation.Simulation`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from codream_secure.aggregation.aggregator import AVERAGING, Aggregator
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.baselines.avgkd import AvgKD
from codream_secure.baselines.base import Baseline, BaselineSettings, Parties, Party
from codream_secure.baselines.centralized import Centralized
from codream_secure.baselines.dpsgd import DistributedDpSgd
from codream_secure.baselines.exchange import ModelExchange
from codream_secure.baselines.fd import FD
from codream_secure.baselines.fedavg import FedAvg
from codream_secure.baselines.fedgen import FedGen
from codream_secure.baselines.fedgh import FedGH
from codream_secure.baselines.fedkd import FedKD
from codream_secure.baselines.fedmrl import FedMRL
from codream_secure.baselines.fedproto import FedProto
from codream_secure.baselines.fedprox import FedProx
from codream_secure.baselines.fedtgp import FedTGP
from codream_secure.baselines.fml import FML
from codream_secure.baselines.independent import Independent
from codream_secure.baselines.lgfedavg import LGFedAvg
from codream_secure.baselines.messenger_pairs import MessengerPairs
from codream_secure.baselines.moon import Moon
from codream_secure.baselines.scaffold import Scaffold
from codream_secure.config.methods import (
    CLASS_ROWS,
    PEERS,
    PRIVATE_SUMS,
    SINGLE,
    WITH_MESSENGER,
    Method,
)
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset
from codream_secure.errors import UserError
from codream_secure.federation.observer import Measurement
from codream_secure.federation.rounds import Progress
from codream_secure.federation.run import Run
from codream_secure.federation.run_models import warn_of_size
from codream_secure.learning.compute import Work
from codream_secure.learning.schedule import round_rate
from codream_secure.privacy.plan import AnyPlan
from codream_secure.runtime.parallel import one_core_each

_FAMILIES: dict[str, type[Baseline]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "moon": Moon,
    "fedgen": FedGen,
    "avgkd": AvgKD,
    "lg-fedavg": LGFedAvg,
    "fml": FML,
    "fedkd": FedKD,
    "fedmrl": FedMRL,
    "fd": FD,
    "fedproto": FedProto,
    "fedgh": FedGH,
    "fedtgp": FedTGP,
    PRIVATE_SUMS: DistributedDpSgd,
    "messenger": MessengerPairs,
    "independent": Independent,
    "centralized": Centralized,
}
# These exchange nothing, or exchange models that may differ in architecture. Of several
# architectures `centralized` trains the first, that of the server's student.
_ANY_MODELS = (*PEERS, *SINGLE, "avgkd", "independent", "centralized")
# These run under --dp-eps: by DP-SGD at every client, or by noisy sums.
_PRIVATE = ("fedavg", "independent", PRIVATE_SUMS)


class BaselineRun(Run):
    """A baseline over the same data, seeds and evaluation as `Simulation`.

    Args:
        config: settings of data, models, seeds and failures; those of dreams have no effect.
        method: any method that does not dream.
        settings: of the baselines.
        dataset: used instead of the dataset that the settings name.
        progress: follows what happens inside a round.

    Attributes:
        exchange: moves models between clients and server.
        baseline: the method.

    Raises:
        UserError: the method cannot be run with these settings.

    Guarantee:
        With ``dp_eps`` a client's data is touched by its own DP-SGD steps alone, or by noisy sums
        alone, at most ``dp_steps`` of them, whose noise was computed for that total; what else is
        sent and averaged is post-processing. `guarantee` reports what was really released.
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
        config = _without_class_means(resolve(config))
        _check_privacy(config, method)
        super().__init__(config, dataset=dataset, progress=progress)
        if method.family not in _ANY_MODELS and len(set(self.federation.model_names)) > 1:
            raise UserError(f"{method.name} needs one architecture for all clients")
        self.method, self.settings = method, settings
        self.exchange = ModelExchange(
            method,
            self._aggregation_settings(key_steps=1),
            self._meters,
            seed=self._seed,
            weights=self._weights(),
        )
        self.aggregator = self.exchange.aggregator = self._aggregator()
        self._clients = {c: self._party(c) for c in self.federation.roster}
        parties = Parties(self.federation, settings, self.exchange, self._meters, self._clients)
        with one_core_each():
            self.baseline = _FAMILIES[method.family](parties)
        common = self.baseline.server_model()
        if method.family in WITH_MESSENGER and common is not None:
            warn_of_size(settings.messenger, common, self.baseline.client_models())

    @property
    def last_round(self) -> None:
        """None: a comparison stops the loop, when the budget that all methods share is spent."""
        return

    def round(self, number: int) -> Measurement:
        """Run one round and measure."""
        self._progress.start(f"{self.method.name}: round {number}", 1)
        for party in self._clients.values():
            party.rate = round_rate(self.config, number, self.budget_spent)
        with self.stopwatch.measure("local_training"):
            self.baseline.round(number)
        measurement = self._measure(number)
        self._progress.advance()
        return measurement

    @property
    def method_name(self) -> str:
        """The name as the user wrote it."""
        return self.method.name

    @property
    def masked(self) -> bool:
        """Whether updates are masked."""
        return self.method.secure

    @property
    def method_settings(self) -> Mapping[str, Any]:
        """The settings of the baselines."""
        return dataclasses.asdict(self.settings)

    @property
    def budget(self) -> AnyPlan | None:
        """The budget of the method's own releases; None without DP."""
        return self.baseline.budget

    def client_models(self) -> Mapping[int, nn.Module]:
        """Return what each client holds at the end of a round."""
        return self.baseline.client_models()

    def server_model(self) -> nn.Module | None:
        """Return the one model for all; None: the method has none."""
        return self.baseline.server_model()

    def _aggregator(self) -> Aggregator | None:
        """Return what sums the updates; None: they travel as float32, each on its own."""
        exchange = self.exchange
        answers, settings = exchange.answers(), exchange.settings
        if self.method.secure:
            return SecureAggregator(
                answers, settings, self._meters, session=os.urandom(32), kinds=AVERAGING
            )
        return PlainAggregator(answers, settings, self._meters) if exchange.quantized else None

    def _work(self) -> Sequence[Work]:
        return [party.work for party in self._clients.values()]

    def _party(self, client: int) -> Party:
        batches = self.federation.local_batches(client, "baseline")
        per_epoch = max(1, len(self.federation.examples(client).y) // batches.size)
        return Party(client, batches, per_epoch * self.settings.local_epochs, Work())

    def _weights(self) -> dict[int, int] | None:
        if self.config.learning.weights == "equal" or self.method.family in CLASS_ROWS:
            return None
        return {c: len(self.federation.examples(c).y) for c in self.federation.roster}


def _check_privacy(config: Config, method: Method) -> None:
    """Raise UserError for a method that does not offer the privacy that was asked for."""
    if config.private and method.family not in _PRIVATE:
        raise UserError(f"{method.name}: not available with --dp-eps; {', '.join(_PRIVATE)} are")
    if method.family == PRIVATE_SUMS and not config.private:
        raise UserError(f"{PRIVATE_SUMS} needs --dp-eps; without it, fedavg-secure")
    if config.private_clients:
        raise UserError(f"{method.name}: not available with --dp-unit client; codream is")


def _without_class_means(config: Resolved) -> Resolved:
    """Return settings without class means: only dreams start from them, and they cost epsilon."""
    if not config.private:
        return config
    return dataclasses.replace(
        config, privacy=dataclasses.replace(config.privacy, statistics_eps=0.0)
    )
