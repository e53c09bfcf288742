"""Centralized training: one model on the data of all clients, an upper bound for all methods."""

from torch import nn

from codream_secure.baselines.base import Baseline, Parties, Party
from codream_secure.learning.compute import Work
from codream_secure.runtime.seeds import generator


class Centralized(Baseline):
    """Takes as many steps per round as all clients together would.

    Its work counts as if every client had done an equal part of it, so that costs per client can
    be compared.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self.model = parties.new_model()
        shuffle = generator(parties.exchange.seed, "centralized")
        self._batches = parties.federation.stream(parties.federation.pooled(), shuffle)

    def client_models(self) -> dict[int, nn.Module]:
        """Return the model, once per client."""
        return dict.fromkeys(self.parties.clients, self.model)

    def server_model(self) -> nn.Module:
        """Return the model."""
        return self.model

    def round(self, number: int) -> None:
        """Train on the examples of all clients."""
        clients = list(self.parties.clients.values())
        steps = sum(party.steps for party in clients)
        whole = Party(-1, self._batches, steps, Work(), clients[0].rate)
        whole.train(self.model, self.settings)
        for party in clients:
            party.work.trained += whole.work.trained // len(clients)
