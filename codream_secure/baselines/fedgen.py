"""FedGen (Zhu, Hong, Zhou, Data-free knowledge distillation for heterogeneous FL, ICML 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.baselines.base import GlobalModel, Parties, frozen, last_layer
from codream_secure.baselines.clear import send
from codream_secure.models.tensors import Tensors, add, difference, load, tensors_of
from codream_secure.runtime.seeds import generator

_NOISE = 32
_HIDDEN = 128
_BATCH = 128
_RATE = 3e-4


class FeatureGenerator(nn.Module):
    """Generates inputs of a classifier from labels and noise (the paper's G, one hidden layer).

    Args:
        classes: number of labels.
        features: inputs of the classifier.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self._classes = classes
        self._layers = nn.Sequential(
            nn.Linear(_NOISE + classes, _HIDDEN),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, features),
        )

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Return features, float, shape (B, features).

        They are not negative, like the output of the ReLU that usually precedes a classifier.

        Args:
            labels: int64, shape (B,).
            noise: float, shape (B, 32).
        """
        return F.relu(self._layers(torch.cat([noise, F.one_hot(labels, self._classes)], dim=1)))


class FedGen(GlobalModel):
    """FedAvg with a generator of features that the server fits to all clients' classifiers.

    The server needs each client's classifier, so updates cannot be masked. The paper weights
    classifiers by label counts that clients reveal; here all classifiers count alike.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        config = parties.federation
        self._classes = config.spec.classes
        features = last_layer(self.model).in_features
        self._draw = generator(parties.exchange.seed, "fedgen")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(parties.exchange.seed)
            made = FeatureGenerator(self._classes, features)
        self._generator = made.to(next(self.model.parameters()).device)
        self._optimizer = torch.optim.Adam(self._generator.parameters(), lr=_RATE)

    def round(self, number: int) -> None:
        """Average models, fit the generator to the clients' classifiers, send both to clients."""
        exchange, start = self.parties.exchange, tensors_of(self.model)
        fixed = frozen([self._generator])[0] if number > 1 else None
        # All features are drawn here from one stream: clients train in parallel threads, whose
        # order would otherwise decide who draws what.
        drawn = {c: self._features(fixed, p.steps) for c, p in self.parties.clients.items()}

        def compute(client: int) -> Tensors:
            local, party = self.start(client, start), self.parties.clients[client]
            batches, head = iter(drawn[client]), last_layer(local)

            def penalty(x: Tensor, y: Tensor) -> Tensor:
                made, labels = next(batches)
                return self.settings.generator_weight * F.cross_entropy(head(made), labels)

            party.train(local, self.settings, penalty=penalty if drawn[client] else None)
            return difference(tensors_of(local), start)

        updates = exchange.updates(number, start, compute)
        if updates:
            mean = {n: torch.stack([u[n] for u in updates.values()]).mean(dim=0) for n in start}
            load(self.model, exchange.deliver(number, add(start, mean)))
            self._fit([last_layer(self.locals[c]) for c in updates])
        for client in self.parties.clients:
            tensors = tensors_of(self._generator).values()
            send(self.parties.meters, tensors, client=client, down=True, number=number)

    def _features(self, fixed: nn.Module | None, count: int) -> list[tuple[Tensor, Tensor]]:
        if fixed is None:
            return []
        made = []
        for _ in range(count):
            labels, noise = self._sample()
            made.append((fixed(labels, noise), labels))
        return made

    def _sample(self) -> tuple[Tensor, Tensor]:
        device = next(self.model.parameters()).device
        labels = torch.randint(self._classes, (_BATCH,), generator=self._draw)
        noise = torch.randn(_BATCH, _NOISE, generator=self._draw)
        return labels.to(device), noise.to(device)

    def _fit(self, heads: list[nn.Linear]) -> None:
        """Train the generator until the mean of the classifiers recognises its labels (Eq. 4)."""
        fixed = frozen(heads)
        self._generator.train()
        for _ in range(self.settings.generator_steps):
            labels, noise = self._sample()
            made = self._generator(labels, noise)
            logits = torch.stack([head(made) for head in fixed]).mean(dim=0)
            self._optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
