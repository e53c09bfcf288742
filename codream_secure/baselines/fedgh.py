"""FedGH (Yi et al., Heterogeneous FL with generalized global header, ACM MM 2023)."""

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.baselines.base import Baseline, Parties, features, last_layer
from codream_secure.baselines.class_rows import ClassRows, fit, own_rows, single_rows, stacked
from codream_secure.baselines.heads import models_with_equal_heads
from codream_secure.models.tensors import load, tensors_of
from codream_secure.runtime.seeds import generator


class FedGH(Baseline):
    """The server trains one classifier on each client's mean features of each class.

    Clients train with cross-entropy, send the means in the clear, and take the classifier over.
    The server needs single clients' means, so they cannot be masked: it sees which classes each
    client has, and their mean features. In the authors' code the optimizer at the server holds
    another model, so that the classifier never leaves its random start.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._models = models_with_equal_heads(parties)
        self._classes = parties.federation.spec.classes
        self.head = copy.deepcopy(last_layer(next(iter(self._models.values()))))
        self._order = generator(parties.exchange.seed, "fedgh")

    def client_models(self) -> dict[int, nn.Module]:
        """Return the clients' models."""
        return self._models

    def round(self, number: int) -> None:
        """Train all models, then the classifier on what they send, and deliver it."""
        exchange, federation = self.parties.exchange, self.parties.federation
        form = ClassRows.none(self._classes, self.head.in_features, federation.device)
        found = single_rows(exchange, number, form, self._trained)
        if not found:
            return

        def loss(values: Tensor, classes: Tensor) -> Tensor:
            return F.cross_entropy(self.head(values), classes)

        passes, rate = self.settings.head_epochs, self.settings.server_rate
        rows = stacked(found.values())
        fit(self.head, rows, loss, passes=passes, rate=rate, order=self._order)
        received = exchange.deliver(number, tensors_of(self.head))
        for model in self._models.values():
            load(last_layer(model), received)

    def _trained(self, client: int) -> ClassRows:
        party, model = self.parties.clients[client], self._models[client]
        party.train(model, self.settings)
        examples = self.parties.for_inference(client)
        return own_rows(model, examples, self._classes, features)
