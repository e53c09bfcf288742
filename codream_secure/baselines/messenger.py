"""A small common model that clients of any architecture train and the server averages.

Method messenger, FML, FedKD and FedMRL send it, and nothing else of a client.
"""

import copy
from collections.abc import Callable

from torch import nn

from codream_secure.baselines.base import Parties, Party
from codream_secure.models.tensors import Tensors, add, difference, load, tensors_of

# What a client does with its copy in one round: takes the client and the copy, trained in place.
Training = Callable[[Party, nn.Module], None]


class Messenger:
    """The common model, and each client's copy of it.

    BatchNorm's running statistics are averaged like weights; HtFLlib averages parameters only.

    Args:
        parties: the clients and what connects them.
        model: that everybody starts from; it follows from a public seed.

    Attributes:
        model: the average.
        locals: the clients' copies.
    """

    def __init__(self, parties: Parties, model: nn.Module) -> None:
        self.model = model
        self.locals = {c: copy.deepcopy(model) for c in parties.clients}
        self._parties = parties

    @classmethod
    def of(cls, parties: Parties) -> "Messenger":
        """Build the architecture that the settings name, with weights from the public seed."""
        name = parties.settings.messenger
        return cls(parties, parties.federation.model(name, "messenger"))

    def average(self, number: int, train: Training) -> None:
        """Let every client train a copy, and add the mean of the changes to the model.

        Args:
            number: of the round.
            train: a client's work; clients work in parallel.
        """
        start, exchange = tensors_of(self.model), self._parties.exchange
        update = exchange.mean_update(number, start, self.training(start, train))
        load(self.model, exchange.deliver(number, add(start, update)))

    def training(self, start: Tensors, train: Training) -> Callable[[int], Tensors]:
        """Return a function that gives the change of a client's copy in its training.

        Args:
            start: the model's numbers, which each copy begins with.
            train: a client's work.
        """

        def compute(client: int) -> Tensors:
            local = self.locals[client]
            load(local, start)
            train(self._parties.clients[client], local)
            return difference(tensors_of(local), start)

        return compute
