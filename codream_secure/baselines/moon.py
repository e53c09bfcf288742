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
    features,
    frozen,
)
from codream_secure.baselines.fedavg import FedAvg
from codream_secure.models.tensors import Tensors


class Moon(FedAvg):
    """FedAvg with a contrastive loss on representations.

    It pulls a client's representation towards that of the global model and pushes it away from
    that of the client's own previous model. The representation is the classifier's input. The
    paper adds a projection head before it, which would change the model that methods are
    compared on.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._previous: dict[int, nn.Module] = {}
        self._global: dict[int, nn.Module] = {}

    def round(self, number: int) -> None:
        """Run one round of FedAvg and keep the clients' models for the next round."""
        # Each client needs its own copy: clients train in parallel, and a hook on a shared model
        # would record the inputs of several of them.
        copies = frozen([self.model] * len(self.locals))
        self._global = dict(zip(self.locals, copies, strict=True))
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
        """Return mu times the contrastive loss (Eq. 3); the first round has no previous model."""
        if party.identity not in self._previous:
            return None, None
        previous, settings = self._previous[party.identity], self.settings
        own, everybody = self._own[party.identity], self._global[party.identity]

        def penalty(x: Tensor, y: Tensor) -> Tensor:
            party.work.inferred += 2 * len(x)
            with torch.no_grad():
                towards, away = features(everybody, x), features(previous, x)
            near = F.cosine_similarity(own.value, towards) / settings.moon_temperature
            far = F.cosine_similarity(own.value, away) / settings.moon_temperature
            return settings.moon_weight * -F.log_softmax(torch.stack([near, far]), dim=0)[0].mean()

        return penalty, None
