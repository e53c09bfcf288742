"""A small common model beside private ones: all clients average it, and none sends its own.

The form is that of FML (Shen et al., Federated mutual learning, 2020) and FedKD (Wu et al., Nature
Communications 2022): on the client's own pictures, private model and messenger learn from each
other. Three things differ. Both have the run's local loss, which may be balanced. Their optimizers
live for the whole run, so that a schedule can follow it. The private model also follows the
messenger on cut and mixed pictures (CutMix, Yun et al., ICCV 2019), which the messenger labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codream_secure.baselines.base import Baseline, BaselineSettings, Parties, Party
from codream_secure.baselines.messenger import Messenger, divergence
from codream_secure.data.augment import cut_mixed
from codream_secure.learning.learner import build_optimizer
from codream_secure.runtime.seeds import generator


@dataclass(slots=True)
class Pair:
    """One client's private model and its copy of the messenger.

    Attributes:
        private, messenger: trained in place.
        optimizers: of ``private`` and of ``messenger``.
        draw: draws cuts and mixtures; a generator on the CPU.
    """

    private: nn.Module
    messenger: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    draw: torch.Generator

    def step(self, party: Party, settings: BaselineSettings) -> None:
        """Take one step of both models on one minibatch of local pictures."""
        x, y = party.batches.next()
        self.private.train()
        self.messenger.train()
        own, common = self.private(x), self.messenger(x)
        party.work.trained += 2 * len(x)
        heat, weight = settings.messenger_temperature, settings.messenger_weight
        private_loss = party.batches.loss(own, y) + weight * divergence(common, own, heat)
        common_loss = party.batches.loss(common, y) + weight * divergence(own, common, heat)
        if settings.messenger_mix:
            private_loss = private_loss + weight * self._mixture(party, x, heat)
        for optimizer, loss in zip(self.optimizers, (private_loss, common_loss), strict=True):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _mixture(self, party: Party, x: Tensor, temperature: float) -> Tensor:
        """Return the private model's distance to the messenger on cut and mixed pictures."""
        mixed = cut_mixed(x, self.draw)
        # In eval mode: the messenger's BatchNorm statistics are those of whole pictures.
        self.messenger.eval()
        with torch.no_grad():
            target = self.messenger(mixed)
        self.messenger.train()
        party.work.trained += len(x)
        party.work.inferred += len(x)
        return divergence(target, self.private(mixed), temperature)


class MessengerPairs(Baseline):
    """Clients of any architecture, with a small public one that they average.

    What travels is the messenger's update, a sum that masks can hide. Private models stay.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self.messenger = Messenger.of(parties)
        self._pairs = {c: self._pair(c) for c in parties.clients}

    def _pair(self, client: int) -> Pair:
        everybody = self.parties.federation
        private, own = everybody.client_models()[client], self.messenger.locals[client]
        learning = everybody.config.learning
        optimizers = build_optimizer(private, learning), build_optimizer(own, learning)
        draw = generator(self.parties.exchange.seed, "mixture", client)
        return Pair(private, own, optimizers, draw)

    def client_models(self) -> dict[int, nn.Module]:
        """Return the clients' private models."""
        return {c: pair.private for c, pair in self._pairs.items()}

    def server_model(self) -> nn.Module:
        """Return the messenger."""
        return self.messenger.model

    def round(self, number: int) -> None:
        """Let all pairs train, average the messengers, and send the average to all clients."""
        self.messenger.average(number, self._train)

    def _train(self, party: Party, _: nn.Module) -> None:
        pair = self._pairs[party.identity]
        rate = party.rate * self.parties.federation.config.learning.learning_rate
        for optimizer in pair.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        for _step in range(party.steps):
            pair.step(party, self.settings)
