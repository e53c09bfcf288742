"""LG-FedAvg (Liang et al., Think locally, act globally, arXiv 2001.01523)."""

from torch import nn

from codream_secure.baselines.base import Baseline, Parties, last_layer
from codream_secure.baselines.heads import models_with_equal_heads
from codream_secure.models.tensors import Tensors, add, difference, load, tensors_of


class LGFedAvg(Baseline):
    """Layers up to the features stay with each client; the classifiers are averaged.

    The authors' code starts from a trained FedAvg model, and reports each client's best round on
    test data; here everybody starts anew. HtFLlib weights clients by their examples.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._models = models_with_equal_heads(parties)

    def client_models(self) -> dict[int, nn.Module]:
        """Return the clients' models."""
        return self._models

    def round(self, number: int) -> None:
        """Train all models, average their classifiers, and send the mean to all clients."""
        exchange = self.parties.exchange
        start = tensors_of(last_layer(next(iter(self._models.values()))))

        def compute(client: int) -> Tensors:
            model = self._models[client]
            self.parties.clients[client].train(model, self.settings)
            return difference(tensors_of(last_layer(model)), start)

        update = exchange.mean_update(number, start, compute)
        received = exchange.deliver(number, add(start, update))
        for model in self._models.values():
            load(last_layer(model), received)
