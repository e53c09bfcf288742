"""FedKD (Wu et al., Communication-efficient FL via knowledge distillation, Nat. Commun. 2022)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.baselines.base import Baseline, Parties, Party, last_layer, observed
from codream_secure.baselines.heads import seeded_linear
from codream_secure.baselines.messenger import Messenger
from codream_secure.learning.pair import divergence
from codream_secure.models.tensors import Tensors, add, load, tensors_of, zeros

_FACTORS = (":u", ":s", ":v")


class FedKD(Baseline):
    """A private mentor and a common mentee teach each other; changes of the mentee are compressed.

    Each minimises its cross-entropy, plus KL to the other and the distance of hidden features, both
    divided by the sum of the two cross-entropies: models that err teach less. The divisor is a
    weight, so no gradient flows through it. A matrix of the client's own maps features of the
    mentee to those of the mentor. Changes travel as their largest singular values; a client's
    masked change travels dense, because factors do not add up, and only the mean is compressed.

    Public code differs: HtFLlib compresses weights, kernel window by kernel window, and drops a
    matrix that needs full rank; the authors' code cannot rebuild a matrix from its factors.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._models = parties.own_models()
        self.messenger = Messenger.of(parties)
        width = last_layer(self.messenger.model).in_features
        self._maps = {
            c: seeded_linear(parties, width, last_layer(model).in_features, "map", c)
            for c, model in self._models.items()
        }

    def client_models(self) -> dict[int, nn.Module]:
        """Return the mentors."""
        return self._models

    def server_model(self) -> nn.Module:
        """Return the mentee."""
        return self.messenger.model

    def round(self, number: int) -> None:
        """Train both models at every client, and add the mean of the mentees' changes."""
        exchange, start = self.parties.exchange, tensors_of(self.messenger.model)
        energy, compute = self._energy(number), self.messenger.training(start, self._train)
        if exchange.aggregator is None:
            sent = exchange.updates(number, start, lambda c: factors(compute(c), energy))
            found = {c: rebuilt(update, start) for c, update in sent.items()}
            update = exchange.mean(found) if found else zeros(start)
        else:
            update = exchange.mean_update(number, start, compute)
        received = exchange.deliver(number, factors(update, energy))
        load(self.messenger.model, add(start, rebuilt(received, start)))

    def _energy(self, number: int) -> float:
        rounds = self.parties.federation.config.dream.rounds
        done = min(1.0, (number - 1) / max(1, rounds - 1))
        first, last = self.settings.kd_energy_first, self.settings.kd_energy_last
        return first + done * (last - first)

    def _train(self, party: Party, mentee: nn.Module) -> None:
        mentor, mapping = self._models[party.identity], self._maps[party.identity]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            (own, big), (shared, small) = observed(mentor, x), observed(mentee, x)
            errors = party.batches.loss(big, y), party.batches.loss(small, y)
            distance = F.mse_loss(own, mapping(shared.detach()))
            distance = distance + F.mse_loss(mapping(shared), own.detach())
            taught = divergence(small, big) + divergence(big, small) + distance
            return errors[0] + errors[1] + taught / (errors[0] + errors[1]).detach()

        party.descend([nn.ModuleList([mentor, mapping]), mentee], self.settings, loss)


def factors(update: Mapping[str, Tensor], energy: float) -> Tensors:
    """Return every matrix as its largest singular values and their vectors, where that is smaller.

    Args:
        update: tensors; kernels count as matrices with a row for each output channel.
        energy: share of the squared singular values to keep, 0 to 1.
    """
    sent: Tensors = {}
    for name, value in update.items():
        sent[name] = value
        if value.dim() <= 1 or not value.any():
            continue
        u, s, v = torch.linalg.svd(value.flatten(1), full_matrices=False)
        kept = s.square().cumsum(0) / s.square().sum()
        rank = min(int((kept < energy).sum()) + 1, len(s))
        if rank * (len(u) + v.shape[1] + 1) < value.numel():
            del sent[name]
            parts = (u[:, :rank].contiguous(), s[:rank], v[:rank])
            sent |= {name + end: part for end, part in zip(_FACTORS, parts, strict=True)}
    return sent


def rebuilt(sent: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors that `factors` compressed, in the names and shapes of ``like``."""
    update: Tensors = {}
    for name, value in like.items():
        if name in sent:
            update[name] = sent[name]
            continue
        u, s, v = (sent[name + end] for end in _FACTORS)
        update[name] = ((u * s) @ v).reshape(value.shape)
    return update
