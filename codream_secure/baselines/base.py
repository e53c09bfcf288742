"""The common parts of all baselines: the parties, local training, and the interface of a method."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codream_secure.aggregation.aggregator import Meters
from codream_secure.baselines.exchange import ModelExchange
from codream_secure.config.bounds import (
    Channels,
    Decay,
    Epochs,
    Fraction,
    Share,
    Size,
    StepSize,
    Temperature,
    Weight,
    check_fields,
)
from codream_secure.data.examples import Examples
from codream_secure.federation.members import Federation
from codream_secure.learning.batches import BatchStream
from codream_secure.learning.compute import Work
from codream_secure.models.tensors import load
from codream_secure.privacy.plan import AnyPlan
from codream_secure.runtime.parallel import in_parallel

if TYPE_CHECKING:
    from codream_secure.privacy.dpsgd import PrivateTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineSettings:
    """Settings of the baselines, with the values of the papers beside ours.

    Args:
        local_epochs: per round. FedAvg: E of 1 to 20 (McMahan et al. 2017), FedProx: 20, MOON: 10.
        learning_rate: of local SGD. FedProx and MOON: 0.01. `compare` can try other rates.
        momentum: of local SGD. MOON: 0.9. SCAFFOLD always runs without momentum.
        prox: FedProx's mu. Paper: 0.001 to 1.
        moon_weight: MOON's mu. Paper: 5 for CIFAR-10, 1 for its smaller datasets.
        moon_temperature: MOON's tau. Paper: 0.5.
        generator_steps: FedGen's optimizer steps on its generator per round.
        generator_weight: of FedGen's loss on generated features. Paper: 1 at first.
        messenger: architecture of the small common model (messenger, FML, FedKD, FedMRL).
        messenger_weight: method messenger: of the divergence between the two models.
        messenger_temperature: method messenger: of that divergence.
        messenger_mix: method messenger: whether the private model follows the messenger on
            cut-mixed pictures too.
        fml_private: FML's alpha, the private model's share of cross-entropy. HtFLlib's runs: 0.5.
        fml_common: FML's beta, the common model's share of cross-entropy. HtFLlib's runs: 0.5.
        feature_width: features before the classifier where architectures differ in it, for
            methods that share features or classifiers. HtFLlib: 512.
        fd_weight: FD's weight of distillation. HtFLlib: 1.
        proto_weight: FedProto's lambda. Paper: 1, for CIFAR-10 0.1. HtFLlib's runs: 10.
        head_epochs: FedGH's passes over the class means at the server. HtFLlib: 1 to 100.
        server_rate: of the server's SGD in FedGH and FedTGP. HtFLlib: 0.01.
        tgp_weight: FedTGP's lambda. HtFLlib's runs: 10.
        tgp_margin: FedTGP's largest margin, tau. Paper: 100.
        tgp_epochs: FedTGP's passes over the class means at the server. Paper: 100.
        kd_energy_first, kd_energy_last: share of squared singular values that FedKD keeps in the
            first and in the last round. Paper: 0.95, 0.98.
        mrl_width: FedMRL's features of the common model, at most a client's own. HtFLlib: 128.
    """

    local_epochs: Epochs = 5
    learning_rate: StepSize = 0.03
    momentum: Decay = 0.9
    prox: Weight = 0.01
    moon_weight: Weight = 1.0
    moon_temperature: Temperature = 0.5
    generator_steps: Epochs = 20
    generator_weight: Weight = 1.0
    messenger: str = "lenet5"
    messenger_weight: Weight = 1.0
    messenger_temperature: Temperature = 2.0
    messenger_mix: bool = True
    fml_private: Fraction = 0.5
    fml_common: Fraction = 0.5
    feature_width: Channels = 64
    fd_weight: Weight = 1.0
    proto_weight: Weight = 1.0
    head_epochs: Epochs = 100
    server_rate: StepSize = 0.01
    tgp_weight: Weight = 10.0
    tgp_margin: Size = 100.0
    tgp_epochs: Epochs = 100
    kd_energy_first: Share = 0.95
    kd_energy_last: Share = 0.98
    mrl_width: Channels = 128

    def __post_init__(self) -> None:
        """Refuse numbers out of bounds.

        Raises:
            UserError: which, and what it must be.
        """
        check_fields(self)


# The loss of one step: takes images and labels of a minibatch, returns a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]
# A second term of the loss: takes images and labels of a minibatch, returns a scalar.
Penalty = Callable[[Tensor, Tensor], Tensor]
# Changes a model's gradients in place before the optimizer's step.
Correction = Callable[[nn.Module], None]


@dataclass(slots=True)
class Party:
    """One client of a baseline: its minibatches, steps per round, and what it has computed.

    Attributes:
        rate: share of the full learning rate in this round, 0 to 1 (`schedule.round_rate`).
    """

    identity: int
    batches: BatchStream
    steps: int
    work: Work
    rate: float = 1.0

    def train(
        self,
        model: nn.Module,
        settings: BaselineSettings,
        *,
        momentum: float | None = None,
        penalty: Penalty | None = None,
        correction: Correction | None = None,
    ) -> None:
        """Take one round's SGD steps on local data.

        The optimizer is new in every round, as in the papers: its momentum starts at zero.

        Args:
            model: trained in place.
            settings: learning rate and momentum.
            momentum: overrides the momentum of ``settings``.
            penalty: added to the local loss of each minibatch.
            correction: applied to the gradients before each step.
        """

        def loss(x: Tensor, y: Tensor) -> Tensor:
            own = self.batches.loss(model(x), y)
            return own if penalty is None else own + penalty(x, y)

        self.descend([model], settings, loss, momentum=momentum, correction=correction)

    def descend(
        self,
        models: Sequence[nn.Module],
        settings: BaselineSettings,
        loss: Loss,
        *,
        momentum: float | None = None,
        correction: Correction | None = None,
    ) -> None:
        """Take one round's SGD steps on local data, with one loss for all of ``models``.

        A minibatch counts as work once for each of them. The optimizer is new in every round.

        Args:
            models: trained in place.
            settings: learning rate and momentum.
            loss: of a minibatch; for labels it uses the loss of ``batches``.
            momentum: overrides the momentum of ``settings``.
            correction: applied to each model's gradients before each step.
        """
        beta = settings.momentum if momentum is None else momentum
        weights = [weight for model in models for weight in model.parameters()]
        optimizer = torch.optim.SGD(weights, lr=self.rate * settings.learning_rate, momentum=beta)
        for model in models:
            model.train()
        for _ in range(self.steps):
            x, y = self.batches.next()
            self.work.trained += len(models) * len(x)
            optimizer.zero_grad()
            loss(x, y).backward()  # type: ignore[no-untyped-call]
            if correction is not None:
                for model in models:
                    correction(model)
            optimizer.step()


@dataclass(slots=True)
class Parties:
    """What a method works with: the federation, its clients, and the exchange of models."""

    federation: Federation
    settings: BaselineSettings
    exchange: ModelExchange
    meters: Meters
    clients: dict[int, Party]

    def new_model(self) -> nn.Module:
        """Return the model that everybody starts from; it follows from the public seed."""
        return self.federation.model(self.federation.model_names[0], "server")

    def own_models(self) -> dict[int, nn.Module]:
        """Return a new model of each client's own architecture, by client id."""
        names = self.federation.model_names
        return {c: self.federation.model(names[c], c) for c in self.clients}

    def for_inference(self, client: int) -> Examples:
        """Return a client's examples; one forward pass over them counts as its work."""
        examples = self.federation.examples(client)
        self.clients[client].work.inferred += len(examples.y)
        return examples

    def private_steps(self, number: int) -> int | None:
        """Charge and return the private steps per client in a round; None without DP."""
        plan = self.federation.plan
        return None if plan is None else plan.reserve(plan.even_steps(number))

    def each(self, work: Callable[[Party], None]) -> None:
        """Let every client do ``work``, in parallel."""
        list(in_parallel(work, self.clients.values()))


class Baseline(ABC):
    """One method of federated learning.

    Args:
        parties: the clients and what connects them.
    """

    def __init__(self, parties: Parties) -> None:
        self.parties = parties
        self.settings = parties.settings

    @abstractmethod
    def round(self, number: int) -> None:
        """Run one round."""

    @abstractmethod
    def client_models(self) -> dict[int, nn.Module]:
        """Return what each client holds at the end of a round, by client id."""

    def server_model(self) -> nn.Module | None:
        """Return the one model for all; None: the method has none."""
        return None

    @property
    def budget(self) -> AnyPlan | None:
        """The budget that private releases are charged to; None without DP."""
        return self.parties.federation.budget


class GlobalModel(Baseline):
    """A method whose clients train copies of one model, which the server averages."""

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self.model = parties.new_model()
        self.locals = {c: copy.deepcopy(self.model) for c in parties.clients}
        self._trainers: dict[int, PrivateTrainer] = {}
        if plan := parties.federation.plan:
            self._trainers = {c: plan.trainer(m, "client", c) for c, m in self.locals.items()}

    def client_models(self) -> dict[int, nn.Module]:
        """Return the average, once per client."""
        return dict.fromkeys(self.locals, self.model)

    def server_model(self) -> nn.Module:
        """Return the average."""
        return self.model

    def train_privately(self, party: Party, steps: int) -> None:
        """Take DP-SGD steps that were charged by `Parties.private_steps`, on a client's copy."""
        data = self.parties.federation.examples(party.identity)
        trainer = self._trainers[party.identity]
        for _ in range(steps):
            # Count the expected minibatch: how many examples Poisson sampling drew is private.
            party.work.trained += round(trainer.sampling_rate * len(data.y))
            trainer.step(data.x, data.y)

    def start(self, client: int, tensors: dict[str, Tensor]) -> nn.Module:
        """Set a client's copy to the global model's numbers and return it."""
        model = self.locals[client]
        load(model, tensors)
        return model


def last_layer(model: nn.Module) -> nn.Linear:
    """Return the classifier: the linear layer that the model defines last."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return layers[-1]


def replace_last_layer(model: nn.Module, layer: nn.Module) -> None:
    """Put another layer in the place of the classifier, in place."""
    old = last_layer(model)
    name = next(n for n, module in model.named_modules() if module is old)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


class Representation:
    """Records the input of a model's classifier at each forward pass, until it is closed.

    Args:
        model: gets a hook.

    Attributes:
        value: the input in the last pass, float, shape (B, features).
    """

    def __init__(self, model: nn.Module) -> None:
        self.value = torch.empty(0)
        self._handle = last_layer(model).register_forward_pre_hook(self._catch)

    def _catch(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.value = inputs[0]

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()


def observed(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classifier's input for images, float, shape (B, features), and the logits."""
    caught = Representation(model)
    try:
        logits: Tensor = model(x)
    finally:
        caught.close()
    return caught.value, logits


def features(model: nn.Module, x: Tensor) -> Tensor:
    """Return the classifier's input for images, float, shape (B, features)."""
    return observed(model, x)[0]


def frozen(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Return copies in eval mode whose parameters take no gradients."""
    return [copy.deepcopy(m).eval().requires_grad_(requires_grad=False) for m in models]
