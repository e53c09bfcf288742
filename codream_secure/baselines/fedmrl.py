"""FedMRL (Yi et al., Federated model heterogeneous Matryoshka learning, NeurIPS 2024)."""

import torch
from torch import Tensor, nn

from codream_secure.baselines.base import Baseline, Parties, Party, features, last_layer
from codream_secure.baselines.heads import narrow, seeded_linear
from codream_secure.baselines.messenger import Messenger
from codream_secure.models.tensors import load, tensors_of


class Fused(nn.Module):
    """A private and a common model whose features a private projector joins.

    Args:
        private: the client's own model.
        common: the client's copy of the common model; its features are at most as many.
        projector: maps the features of both to as many as the private model has.
    """

    def __init__(self, private: nn.Module, common: nn.Module, projector: nn.Linear) -> None:
        super().__init__()
        self.private, self.common, self.projector = private, common, projector

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the private classifier's logits of all joined features, and the common one's.

        The common classifier sees as many of the first joined features as it takes.
        """
        joined = self.projector(torch.cat([features(self.common, x), features(self.private, x)], 1))
        small = last_layer(self.common)
        large: Tensor = last_layer(self.private)(joined)
        return large, small(joined[:, : small.in_features])

    def forward(self, x: Tensor) -> Tensor:
        """Return the private classifier's logits, which the paper predicts with."""
        return self.both(x)[0]


class FedMRL(Baseline):
    """Features of a private and of a common model are joined; classifiers of both learn from them.

    The loss is the sum of both cross-entropies. The common model travels and is averaged; projector
    and private model stay. In HtFLlib every round drops what the projector learned, and tests use
    its random start.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        models = parties.own_models()
        widths = {c: last_layer(model).in_features for c, model in models.items()}
        width = min(self.settings.mrl_width, *widths.values())
        common = Messenger.of(parties).model
        head = seeded_linear(parties, width, parties.federation.spec.classes, "common head")
        narrow(parties, common, width, head, "common")
        self.messenger = Messenger(parties, common)
        self._models = {
            c: Fused(
                model,
                self.messenger.locals[c],
                seeded_linear(parties, width + widths[c], widths[c], "projector", c),
            )
            for c, model in models.items()
        }

    def client_models(self) -> dict[int, nn.Module]:
        """Return the private models, each joined with the common one."""
        return dict(self._models)

    def server_model(self) -> nn.Module:
        """Return the common model."""
        return self.messenger.model

    def round(self, number: int) -> None:
        """Train both models at every client, and average the common one."""
        self.messenger.average(number, self._train)
        for fused in self._models.values():
            load(fused.common, tensors_of(self.messenger.model))

    def _train(self, party: Party, common: nn.Module) -> None:
        fused = self._models[party.identity]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            large, small = fused.both(x)
            return party.batches.loss(large, y) + party.batches.loss(small, y)

        own = nn.ModuleList([fused.private, fused.projector])
        party.descend([own, common], self.settings, loss)
