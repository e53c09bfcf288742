"""What all baselines share: the parties, local training, and the shape of a round."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.aggregation.aggregator import Meters
from codream_secure.baselines.exchange import ModelExchange, load
from codream_secure.federation.members import Federation
from codream_secure.learning.compute import Work
from codream_secure.learning.learner import BatchStream
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.privacy.release_plan import ReleasePlan
from codream_secure.runtime.parallel import in_parallel

if TYPE_CHECKING:
    from codream_secure.privacy.dpsgd import PrivateTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineSettings:
    """Settings of the baselines; where papers differ, theirs are named beside the value.

    Args:
        local_epochs: a round. FedAvg's E is 1 to 20 (McMahan et al. 2017), FedProx's 20, MOON's 10.
        learning_rate: of local SGD; 0.01 in FedProx and MOON. `compare` tries others.
        momentum: of local SGD; 0.9 in MOON. SCAFFOLD has none.
        prox: FedProx's mu; 0.001 to 1 in the paper.
        moon_weight: MOON's mu; 5 for CIFAR-10, 1 for the smaller sets in the paper.
        moon_temperature: MOON's tau; 0.5 in the paper.
        generator_steps: FedGen's steps on its generator a round.
        generator_weight: of FedGen's loss on generated features; 1 at first in the paper.
    """

    local_epochs: int = 5
    learning_rate: float = 0.03
    momentum: float = 0.9
    prox: float = 0.01
    moon_weight: float = 1.0
    moon_temperature: float = 0.5
    generator_steps: int = 20
    generator_weight: float = 1.0


# Adds to the cross-entropy of a batch: images and labels go in, a scalar comes out.
Penalty = Callable[[Tensor, Tensor], Tensor]
# Changes gradients in place before a step.
Correction = Callable[[nn.Module], None]


@dataclass(slots=True)
class Party:
    """One client of a baseline: its data in batches, and how much it has computed."""

    identity: int
    batches: BatchStream
    steps: int
    work: Work

    def train(
        self,
        model: nn.Module,
        settings: BaselineSettings,
        *,
        momentum: float | None = None,
        penalty: Penalty | None = None,
        correction: Correction | None = None,
    ) -> None:
        """Take a round's steps of SGD on local data, in place; moments start anew."""
        beta = settings.momentum if momentum is None else momentum
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=beta)
        model.train()
        for _ in range(self.steps):
            x, y = self.batches.next()
            self.work.trained += len(x)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if penalty is not None:
                loss = loss + penalty(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
            if correction is not None:
                correction(model)
            optimizer.step()


@dataclass(slots=True)
class Parties:
    """Everything that a baseline works with."""

    federation: Federation
    settings: BaselineSettings
    exchange: ModelExchange
    meters: Meters
    clients: dict[int, Party]

    def new_model(self) -> nn.Module:
        """Return the model that everybody starts from, as the public seed gives it."""
        return self.federation.model(self.federation.model_names[0], "server")

    def private_steps(self, number: int) -> int | None:
        """Charge the private steps that everybody takes in a round; None without DP."""
        plan = self.federation.plan
        return None if plan is None else plan.reserve(plan.even_steps(number))

    def each(self, work: Callable[[Party], None]) -> None:
        """Let every client do something on its own side."""
        list(in_parallel(work, self.clients.values()))


class Baseline(ABC):
    """A method, round by round."""

    def __init__(self, parties: Parties) -> None:
        self.parties = parties
        self.settings = parties.settings

    @abstractmethod
    def round(self, number: int) -> None:
        """Run one round."""

    @abstractmethod
    def client_models(self) -> dict[int, nn.Module]:
        """Return what clients hold at the end of a round, by id."""

    def server_model(self) -> nn.Module | None:
        """Return the one model for all; None: the method has none."""
        return None

    @property
    def budget(self) -> PrivacyPlan | ReleasePlan | None:
        """The budget that private releases are charged to; None without DP."""
        return self.parties.federation.budget


class GlobalModel(Baseline):
    """A method whose clients train copies of one model that the server averages."""

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self.model = parties.new_model()
        self.locals = {c: copy.deepcopy(self.model) for c in parties.clients}
        self._trainers: dict[int, PrivateTrainer] = {}
        if plan := parties.federation.plan:
            self._trainers = {c: plan.trainer(m, "client", c) for c, m in self.locals.items()}

    def client_models(self) -> dict[int, nn.Module]:
        """Return what every client holds after a round: the average."""
        return dict.fromkeys(self.locals, self.model)

    def server_model(self) -> nn.Module:
        """Return the average."""
        return self.model

    def train_privately(self, party: Party, steps: int) -> None:
        """Take so many steps of DP-SGD on a client's copy of the model."""
        data = self.parties.federation.examples(party.identity)
        trainer = self._trainers[party.identity]
        for _ in range(steps):
            # The expected number: how many were drawn is private.
            party.work.trained += round(trainer.sampling_rate * len(data.y))
            trainer.step(data.x, data.y)

    def start(self, client: int, tensors: dict[str, Tensor]) -> nn.Module:
        """Return a client's copy of the global model."""
        model = self.locals[client]
        load(model, tensors)
        return model


def last_layer(model: nn.Module) -> nn.Linear:
    """Return the classifier: the last linear layer in the order of definition."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return layers[-1]


class Representation:
    """Catches what goes into a model's classifier at every forward pass until it is closed.

    Attributes:
        value: of the last pass, shape (B, features).
    """

    def __init__(self, model: nn.Module) -> None:
        self.value = torch.empty(0)
        self._handle = last_layer(model).register_forward_pre_hook(self._catch)

    def _catch(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.value = inputs[0]

    def close(self) -> None:
        """Catch nothing any more."""
        self._handle.remove()


def frozen(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Return copies in eval mode whose parameters take no gradient."""
    return [copy.deepcopy(m).eval().requires_grad_(requires_grad=False) for m in models]
