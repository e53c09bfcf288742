"""MOON (Li, He, Song, Model-contrastive federated learning, CVPR 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.baselines.base import (
    Correction,
    Parties,
    Party,
    Penalty,
    Representation,
    frozen,
)
from codream_secure.baselines.exchange import Tensors
from codream_secure.baselines.fedavg import FedAvg


class Moon(FedAvg):
    """FedAvg that draws a client's representation to the global model's, off its own last one's.

    The representation is what goes into the classifier; the paper puts a projection head before
    it, which would change the model that methods are compared on.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._previous: dict[int, nn.Module] = {}
        self._global = self.model

    def round(self, number: int) -> None:
        """Run a round of FedAvg and keep the clients' models for the next."""
        self._global = frozen([self.model])[0]
        self._own = {c: Representation(model) for c, model in self.locals.items()}
        try:
            super().round(number)
        finally:
            for caught in self._own.values():
                caught.close()
        kept = frozen(self.locals.values())
        self._previous = dict(zip(self.locals, kept, strict=True))

    def extras(
        self, party: Party, local: nn.Module, start: Tensors
    ) -> tuple[Penalty | None, Correction | None]:
        """Return mu times the contrastive loss (Eq. 3); none in the first round."""
        if party.identity not in self._previous:
            return None, None
        previous, settings = self._previous[party.identity], self.settings
        own = self._own[party.identity]

        def penalty(x: Tensor, y: Tensor) -> Tensor:
            party.work.inferred += 2 * len(x)
            with torch.no_grad():
                towards, away = features(self._global, x), features(previous, x)
            near = F.cosine_similarity(own.value, towards) / settings.moon_temperature
            far = F.cosine_similarity(own.value, away) / settings.moon_temperature
            return settings.moon_weight * -F.log_softmax(torch.stack([near, far]), dim=0)[0].mean()

        return penalty, None


def features(model: nn.Module, x: Tensor) -> Tensor:
    """Return what goes into a model's classifier, shape (B, features)."""
    caught = Representation(model)
    try:
        model(x)
    finally:
        caught.close()
    return caught.value
