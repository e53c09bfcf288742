"""SCAFFOLD (Karimireddy et al., Stochastic controlled averaging, ICML 2020, Algorithm 1)."""

import torch
from torch import nn

from codream_secure.baselines.base import GlobalModel, Parties
from codream_secure.models.tensors import Tensors, add, difference, load, tensors_of

_CONTROL = "control."


class Scaffold(GlobalModel):
    """FedAvg with control variates that correct local gradients: y -= lr (g - c_i + c).

    c_i is the client's control variate, c the server's. They are renewed by option II of the
    paper: c_i+ = c_i - c + (x - y_i) / (K lr), with K local steps. Model and control variate
    travel together in both directions, so a round costs twice the bytes of FedAvg. Local SGD has
    no momentum, and the global step size is 1.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        zeros = {n: torch.zeros_like(p.detach()) for n, p in self.model.named_parameters()}
        self._control = zeros
        self._own = dict.fromkeys(parties.clients, zeros)

    def round(self, number: int) -> None:
        """Train on all clients, sum both differences, and send both results to all clients."""
        exchange, start, control = self.parties.exchange, tensors_of(self.model), self._control
        state = start | {_CONTROL + name: value for name, value in control.items()}
        renewed: dict[int, Tensors] = {}

        def compute(client: int) -> Tensors:
            local, own = self.start(client, start), self._own[client]
            party = self.parties.clients[client]

            def correction(model: nn.Module) -> None:
                for name, weight in model.named_parameters():
                    if weight.grad is not None:
                        weight.grad.add_(control[name] - own[name])

            party.train(local, self.settings, momentum=0.0, correction=correction)
            moved = difference(tensors_of(local), start)
            scale = 1 / (party.steps * party.rate * self.settings.learning_rate)
            renewed[client] = {n: own[n] - control[n] - scale * moved[n] for n in control}
            change = difference(renewed[client], own)
            return moved | {_CONTROL + name: value for name, value in change.items()}

        aborted = exchange.aborted
        update = exchange.mean_update(number, state, compute)
        # An aborted step changes c by nothing, so the c_i must stay as well: c is their mean.
        if exchange.aborted == aborted:
            self._own |= renewed
        received = exchange.deliver(number, add(state, update))
        self._control = {name: received[_CONTROL + name] for name in control}
        load(self.model, received)
