"""FedAvg (McMahan et al., Communication-efficient learning, AISTATS 2017, Algorithm 1)."""

from torch import nn

from codream_secure.baselines.base import Correction, GlobalModel, Party, Penalty
from codream_secure.models.tensors import Tensors, add, difference, load, tensors_of


class FedAvg(GlobalModel):
    """Clients train copies of one model; the server adds the mean of their updates to it.

    BatchNorm's running statistics are averaged like weights. Under DP every client takes private
    steps instead of epochs.
    """

    def round(self, number: int) -> None:
        """Train on all clients, sum their updates, and send the new model to all clients."""
        exchange, start = self.parties.exchange, tensors_of(self.model)
        private_steps = self.parties.private_steps(number)

        def compute(client: int) -> Tensors:
            local, party = self.start(client, start), self.parties.clients[client]
            if private_steps is not None:
                self.train_privately(party, private_steps)
                return difference(tensors_of(local), start)
            penalty, correction = self.extras(party, local, start)
            party.train(local, self.settings, penalty=penalty, correction=correction)
            return difference(tensors_of(local), start)

        update = exchange.mean_update(number, start, compute)
        load(self.model, exchange.deliver(number, add(start, update)))

    def extras(
        self, party: Party, local: nn.Module, start: Tensors
    ) -> tuple[Penalty | None, Correction | None]:
        """Return a variant's term of the loss and its change to gradients; FedAvg has neither.

        Args:
            party: the client that trains.
            local: its copy of the model.
            start: the global model at the start of the round.
        """
        return None, None
