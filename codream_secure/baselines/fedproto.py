"""FedProto (Tan et al., Federated prototype learning across heterogeneous clients, AAAI 2022)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.baselines.base import Baseline, Parties, features, last_layer, observed
from codream_secure.baselines.class_rows import (
    ClassRows,
    delivered,
    mean_by_class,
    mean_over_owners,
    own_rows,
)
from codream_secure.baselines.heads import models_with_equal_heads

# Where rows are quantized, the clip is this at first, and then this many times the largest mean.
_FIRST_CLIP = 16.0
_CLIP = 2.0


class NearestPrototype(nn.Module):
    """Predicts the class whose prototype is nearest to an image's features.

    Args:
        model: gives features; its classifier predicts until there is a prototype.
        prototypes: one a class; classes that nobody has are never predicted.
    """

    def __init__(self, model: nn.Module, prototypes: ClassRows) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("rows", prototypes.rows)
        self.register_buffer("owned", prototypes.owned)

    def forward(self, x: Tensor) -> Tensor:
        """Return minus the mean squared distance to each prototype, float, shape (B, classes)."""
        found, logits = observed(self.model, x)
        rows, owned = self.get_buffer("rows"), self.get_buffer("owned")
        if not owned.any():
            return logits
        distance = (found[:, None] - rows).square().mean(dim=2)
        return -distance.masked_fill(~owned, torch.inf)


class FedProto(Baseline):
    """Clients send the mean features of each class, and pull theirs towards everybody's means.

    The loss is cross-entropy plus lambda times the distance of the minibatch's class means to the
    global prototypes (Eq. 7), the mean over its classes of the mean squared difference. Prototypes
    are computed after training, in eval mode, and averaged over the owners of a class. A client
    predicts the class of the nearest global prototype, as in the paper.

    Eq. 6 weights owners by their examples of the class and divides by their number once more,
    which would shrink prototypes; the public codes average owners alike, as here, and so no
    numbers of examples are told. The codes also compare single examples with prototypes, and
    collect features in training mode while the weights move.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._models = models_with_equal_heads(parties)
        self._classes = parties.federation.spec.classes
        width = last_layer(next(iter(self._models.values()))).in_features
        self.prototypes = ClassRows.none(self._classes, width, parties.federation.device)

    @property
    def weight(self) -> float:
        """Of the distance in the loss (lambda)."""
        return self.settings.proto_weight

    def client_models(self) -> dict[int, nn.Module]:
        """Return what predicts at each client."""
        return {c: NearestPrototype(m, self.prototypes) for c, m in self._models.items()}

    def round(self, number: int) -> None:
        """Train all models, and renew the prototypes."""
        found = self.renewed(number)
        if found is not None:
            self.prototypes = delivered(self.parties.exchange, number, found)

    def renewed(self, number: int) -> ClassRows | None:
        """Return new prototypes from the clients' means; None if too few clients stayed."""
        largest = float(self.prototypes.rows.abs().max())
        clip = _CLIP * largest if largest else _FIRST_CLIP
        exchange = self.parties.exchange
        return mean_over_owners(exchange, number, self.prototypes, self.trained, clip)

    def trained(self, client: int) -> ClassRows:
        """Train a client's model for a round, and return its mean features by class."""
        party, model = self.parties.clients[client], self._models[client]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            found, logits = observed(model, x)
            pull = self.weight * distance(found, y, self.prototypes)
            return party.batches.loss(logits, y) + pull

        party.descend([model], self.settings, loss)
        examples = self.parties.for_inference(client)
        return own_rows(model, examples, self._classes, features)


def distance(found: Tensor, y: Tensor, prototypes: ClassRows) -> Tensor:
    """Return the mean squared distance of a minibatch's class means to the prototypes.

    Args:
        found: features, float, shape (B, width).
        y: labels, int64, shape (B,).
        prototypes: classes that have none are left out.
    """
    own = mean_by_class(found, y, len(prototypes.counts))
    both = own.owned & prototypes.owned
    if not both.any():
        return found.sum() * 0
    return F.mse_loss(own.rows[both], prototypes.rows[both])
