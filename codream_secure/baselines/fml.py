"""FML (Shen et al., Federated mutual learning, arXiv 2006.16765)."""

from torch import Tensor, nn

from codream_secure.baselines.base import Baseline, Parties, Party
from codream_secure.baselines.messenger import Messenger
from codream_secure.learning.pair import divergence


class FML(Baseline):
    """A private model and a small common one learn from each other on the client's own examples.

    The private model minimises alpha CE + (1 - alpha) KL(common || private), the client's copy of
    the common model beta CE + (1 - beta) KL(private || common). Only the common model travels, and
    the server averages it. As in mutual learning, what a model learns from is held constant.

    HtFLlib differs: each loss also moves the other model, KL is divided by the number of classes
    too, gradients are clipped at 10, and its defaults (alpha and beta 1) leave no KL.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        self._models = parties.own_models()
        self.messenger = Messenger.of(parties)

    def client_models(self) -> dict[int, nn.Module]:
        """Return the private models."""
        return self._models

    def server_model(self) -> nn.Module:
        """Return the common model."""
        return self.messenger.model

    def round(self, number: int) -> None:
        """Train both models at every client, and average the common one."""
        self.messenger.average(number, self._train)

    def _train(self, party: Party, common: nn.Module) -> None:
        private, settings = self._models[party.identity], self.settings

        def loss(x: Tensor, y: Tensor) -> Tensor:
            own, shared = private(x), common(x)
            alpha, beta = settings.fml_private, settings.fml_common
            of_private = alpha * party.batches.loss(own, y) + (1 - alpha) * divergence(shared, own)
            of_common = beta * party.batches.loss(shared, y) + (1 - beta) * divergence(own, shared)
            return of_private + of_common

        party.descend([private, common], settings, loss)
