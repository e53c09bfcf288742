"""FedProx (Li et al., Federated optimization in heterogeneous networks, MLSys 2020)."""

from torch import nn

from codream_secure.baselines.base import Correction, Party, Penalty
from codream_secure.baselines.exchange import Tensors
from codream_secure.baselines.fedavg import FedAvg


class FedProx(FedAvg):
    """FedAvg whose local loss holds copies close to the global model: + mu / 2 |w - w_t|^2."""

    def extras(
        self, party: Party, local: nn.Module, start: Tensors
    ) -> tuple[Penalty | None, Correction | None]:
        """Return the proximal term as what it does to gradients: + mu (w - w_t)."""

        def correction(model: nn.Module) -> None:
            for name, weight in model.named_parameters():
                if weight.grad is not None:
                    pull = weight.detach() - start[name]
                    weight.grad.add_(pull, alpha=self.settings.prox)

        return None, correction
