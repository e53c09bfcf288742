"""What can be refused before anything slow is imported, with the words of the later checks."""

from codream_secure.config.resolved import Resolved
from codream_secure.data import names as datasets
from codream_secure.errors import UserError
from codream_secure.models import names as models
from protocols.params import MIN_CLIENTS


def check_early(config: Resolved) -> None:
    """Refuse unknown names of models and datasets, and too few clients for masks.

    The same is checked again where it matters; this saves the seconds that PyTorch takes to load.

    Raises:
        UserError: what is wrong, and how to fix it.
    """
    for name in config.model.models.split(","):
        models.check_name(name.strip())
    datasets.check_name(config.data.dataset)
    if config.secure.secure:
        check_masked(config.data.clients)


def check_masked(clients: int) -> None:
    """Raise UserError if masks would protect nobody among so many clients."""
    if clients < MIN_CLIENTS:
        raise UserError(
            f"secure aggregation needs at least {MIN_CLIENTS} clients, not {clients}: with two, "
            "each learns the other's input; add clients or pass --no-secure"
        )
