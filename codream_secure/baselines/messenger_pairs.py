"""A small common model beside private ones: all clients average it, and none sends its own."""

from torch import nn

from codream_secure.baselines.base import Baseline, Parties, Party
from codream_secure.baselines.messenger import Messenger
from codream_secure.learning.learner import build_optimizer
from codream_secure.learning.pair import Pair
from codream_secure.runtime.seeds import generator


class MessengerPairs(Baseline):
    """Clients of any architecture, with a small public one that they average.

    What travels is the messenger's update, a sum that masks can hide. Private models stay.
    `learning.pair` says how the two models of a client learn.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self.messenger = Messenger.of(parties)
        self._pairs = {c: self._pair(party) for c, party in parties.clients.items()}

    def _pair(self, party: Party) -> Pair:
        everybody, settings = self.parties.federation, self.settings
        private = everybody.client_models()[party.identity]
        own = self.messenger.locals[party.identity]
        learning = everybody.config.learning
        return Pair(
            private,
            own,
            (build_optimizer(private, learning), build_optimizer(own, learning)),
            party.batches,
            party.work,
            generator(self.parties.exchange.seed, "mixture", party.identity),
            settings.messenger_weight,
            settings.messenger_temperature,
            settings.messenger_mix,
        )

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
        pair.set_rate(party.rate * self.parties.federation.config.learning.learning_rate)
        for _step in range(party.steps):
            pair.step()
