"""Who masks with whom: the graph of a run, as chosen or as fits its number of clients."""

import math
from dataclasses import dataclass

from codream_secure.config.concerns import SecureConfig
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from protocols.errors import ConfigError
from protocols.graph_parameters import (
    ChosenParameters,
    RingParameters,
    chosen_parameters,
    ring_parameters,
)
from protocols.params import Chosen, GraphName, Ring

# Up to so many clients the complete graph costs little, and it bears the most colluders.
COMPLETE_UP_TO = 100
_NOISE = "under --dp-eps no client, and no noise of one, may be left out of a sum unseen"


@dataclass(frozen=True, slots=True)
class MaskGraph:
    """A graph, and why it was taken.

    Attributes:
        name: of the graph (SPEC 1.4).
        why: one clause for people; empty where the user named the graph.
        sparse: degree, threshold, and whom they were made for; None: the complete graph.
    """

    name: GraphName = "complete"
    why: str = ""
    sparse: RingParameters | ChosenParameters | None = None

    @property
    def ring(self) -> Ring | None:
        """What sessions on the ring take."""
        return self.sparse.ring if isinstance(self.sparse, RingParameters) else None

    @property
    def chosen(self) -> Chosen | None:
        """What sessions on the graph that clients choose take."""
        return self.sparse.chosen if isinstance(self.sparse, ChosenParameters) else None


COMPLETE = MaskGraph()


def mask_graph(config: Config, steps: int) -> MaskGraph:
    """Return the graph of a run.

    Args:
        config: names it, the number of clients, and the shares of corrupt and of silent ones.
        steps: M, the most steps that one key exchange serves.

    Raises:
        UserError: no such graph is safe for so many clients.
    """
    secure, clients = config.secure, config.data.clients
    wanted, malicious = secure.graph, secure.threat_model == "malicious"
    if wanted == "complete":
        return COMPLETE
    if wanted == "auto" and clients <= COMPLETE_UP_TO:
        why = f"up to {COMPLETE_UP_TO} clients it costs little and bears the most colluders"
        return MaskGraph(why=why)
    try:
        if malicious and config.private:
            raise ConfigError(_NOISE)
        found = _chosen(secure, clients, steps) if malicious else _ring(secure, clients, steps)
    except ConfigError as error:
        if wanted == "auto":
            return MaskGraph(why=str(error))
        raise UserError(f"--graph {wanted}: {error}") from None
    why = f"more than {COMPLETE_UP_TO} clients" if wanted == "auto" else ""
    return MaskGraph("chosen" if malicious else "ring", why, found)


def _chosen(secure: SecureConfig, clients: int, steps: int) -> ChosenParameters:
    return chosen_parameters(
        clients, corrupt=secure.graph_corrupt, dropouts=secure.graph_silent, steps=steps
    )


def _ring(secure: SecureConfig, clients: int, steps: int) -> RingParameters:
    """Return the parameters of the smallest ring that the silent clients leave (SPEC 8.7).

    Clients that are silent before the ring is drawn leave a smaller one with as many corrupt ones.
    """
    corrupt = math.ceil(secure.graph_corrupt * clients)
    if corrupt >= clients / 3:
        raise ConfigError("a third corrupt has no sparse graph: use the complete graph (SPEC 8.8)")
    least = clients - math.ceil(secure.graph_silent * clients)
    return ring_parameters(
        least, corrupt=corrupt / least, dropouts=secure.graph_silent, steps=steps
    )
