"""AvgKD (Afonin, Karimireddy, Towards model agnostic federated learning, ICLR 2022)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.baselines.base import Baseline, Parties, Party, frozen
from codream_secure.baselines.clear import send
from codream_secure.models.tensors import tensors_of


class AvgKD(Baseline):
    """Clients of any architecture send each other their models and learn from all predictions.

    On its own examples, a client learns (Y + sum of the others' predictions) / K for K clients.
    Models travel in the clear, through the server, to all clients. Data stays with the clients,
    while CoDream's official code of this baseline uploads it.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._models = parties.own_models()
        self._peers: dict[int, nn.Module] = {}

    def client_models(self) -> dict[int, nn.Module]:
        """Return the clients' models."""
        return self._models

    def round(self, number: int) -> None:
        """Learn from local data with the models of the round before, then exchange models."""

        def work(party: Party) -> None:
            others = [model for c, model in self._peers.items() if c != party.identity]
            self._learn(party, others)

        with self.parties.meters.stopwatch.measure("answering"):
            self.parties.each(work)
        self._peers = dict(zip(self._models, frozen(self._models.values()), strict=True))
        self._count(number)

    def _count(self, number: int) -> None:
        tensors = {c: list(tensors_of(model).values()) for c, model in self._models.items()}
        for client in self._models:
            send(self.parties.meters, tensors[client], client=client, down=False, number=number)
            for other in self._models:
                if other != client:
                    send(
                        self.parties.meters, tensors[other], client=client, down=True, number=number
                    )

    def _learn(self, party: Party, others: list[nn.Module]) -> None:
        model = self._models[party.identity]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            party.work.inferred += len(others) * len(x)
            return party.batches.loss(model(x), targets(others, x, y))

        party.descend([model], self.settings, loss)


@torch.no_grad()
def targets(others: list[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Return the targets of one minibatch.

    Args:
        others: frozen models of the other clients.
        x: images, float, shape (B, C, H, W).
        y: labels, int64, shape (B,).

    Returns:
        The labels themselves if ``others`` is empty; else probabilities, shape (B, classes).
    """
    if not others:
        return y
    predictions = torch.stack([model(x).softmax(dim=1) for model in others])
    own = F.one_hot(y, predictions.shape[2])
    return (own + predictions.sum(dim=0)) / (len(others) + 1)
