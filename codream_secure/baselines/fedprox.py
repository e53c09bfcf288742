"""FedProx (Li et al., Federated optimization in heterogeneous networks, MLSys 2020)."""

from torch import nn

from codream_secure.baselines.base import Correction, Party, Penalty
from codream_secure.baselines.fedavg import FedAvg
from codream_secure.models.tensors import Tensors


class FedProx(FedAvg):
    """FedAvg with a local loss that keeps w close to the global model: + mu / 2 |w - w_t|^2."""

    def extras(
        self, party: Party, local: nn.Module, start: Tensors
    ) -> tuple[Penalty | None, Correction | None]:
        """Return the gradient of the proximal term, mu (w - w_t), as a correction."""

        def correction(model: nn.Module) -> None:
            for name, weight in model.named_parameters():
                if weight.grad is not None:
                    pull = weight.detach() - start[name]
                    weight.grad.add_(pull, alpha=self.settings.prox)

        return None, correction
