"""FD (Jeong et al., Federated distillation and augmentation, arXiv 1811.11479)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.baselines.base import Baseline, Parties
from codream_secure.baselines.class_rows import (
    ClassRows,
    delivered,
    mean_over_owners,
    own_rows,
)


class FD(Baseline):
    """Clients send the mean prediction of each class, and learn towards that of the others.

    A prediction is a softmax, which the paper calls a logit vector. The loss is cross-entropy with
    the label, plus a weight times cross-entropy with the mean over the other owners of the class:
    a client takes its own row out of the mean that it receives. Rows are computed after a round's
    training, in eval mode; the paper and HtFLlib collect them during training.

    HtFLlib sends raw logits and uses their mean as a target, which makes the loss unbounded below
    where a logit is negative; it does not take the client's own row out.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._models = parties.own_models()
        self._classes = parties.federation.spec.classes
        self._mean = ClassRows.none(self._classes, self._classes, parties.federation.device)
        self._own: dict[int, ClassRows] = {}

    def client_models(self) -> dict[int, nn.Module]:
        """Return the clients' models."""
        return self._models

    def round(self, number: int) -> None:
        """Train all models, average their predictions by class, and send the means."""
        exchange, sent = self.parties.exchange, dict[int, ClassRows]()

        def compute(client: int) -> ClassRows:
            self._train(client)
            examples = self.parties.for_inference(client)
            sent[client] = own_rows(self._models[client], examples, self._classes, _predictions)
            return sent[client]

        mean = mean_over_owners(exchange, number, self._mean, compute, 1.0)
        if mean is not None:
            self._mean, self._own = delivered(exchange, number, mean), sent

    def _train(self, client: int) -> None:
        party, model = self.parties.clients[client], self._models[client]
        taught = others(self._mean, self._own.get(client))

        def loss(x: Tensor, y: Tensor) -> Tensor:
            logits = model(x)
            # Targets are zeros, which add nothing, where nobody else has the class.
            towards = -(taught.rows[y] * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
            return party.batches.loss(logits, y) + self.settings.fd_weight * towards

        party.descend([model], self.settings, loss)


def others(mean: ClassRows, own: ClassRows | None) -> ClassRows:
    """Return the mean over the other owners of each class; zeros where there are none.

    Args:
        mean: over all owners.
        own: what the client sent for that mean; None: it sent nothing.
    """
    if own is None:
        return mean
    left = mean.counts - own.owned.long()
    total = mean.counts[:, None] * mean.rows - own.rows
    # Rounding on the way can leave a probability just below zero.
    rows = (total / left.clamp(min=1)[:, None]).clamp(min=0)
    return ClassRows(torch.where(left[:, None] > 0, rows, 0.0), left)


def _predictions(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model(x)
    return found.softmax(dim=1)
