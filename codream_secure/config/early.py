"""What can be refused before anything slow is imported, with the words of the later checks."""

from collections.abc import Mapping, Sequence

from codream_secure.config.methods import parse_method
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config, models_of, settings
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
    check_names(config)
    if config.secure.secure:
        check_masked(config.data.clients)


def check_options(run_config: Mapping[str, object]) -> None:
    """Refuse settings of a deployed run as `check_early` does; others than a run's are skipped.

    Raises:
        UserError: what is wrong, and how to fix it.
    """
    known = {setting.name for setting in settings()}
    named = {name.replace("-", "_"): value for name, value in run_config.items()}
    check_early(resolve(Config.from_options({k: v for k, v in named.items() if k in known})))


def check_names(config: Config) -> None:
    """Raise UserError if a model or the dataset of a run has an unknown name."""
    for name in models_of(config).split(","):
        models.check_name(name.strip())
    datasets.check_name(config.data.dataset)


def check_methods(names: Sequence[str], config: Config) -> None:
    """Refuse unknown methods of a comparison, and too few clients if all of them need masks.

    Raises:
        UserError: what is wrong, and how to fix it.
    """
    found = [parse_method(name, secure=config.secure.secure) for name in names]
    if all(method.secure or method.dreams for method in found) and config.secure.secure:
        check_masked(config.data.clients)


def check_masked(clients: int) -> None:
    """Raise UserError if masks would protect nobody among so many clients."""
    if clients < MIN_CLIENTS:
        raise UserError(
            f"secure aggregation needs at least {MIN_CLIENTS} clients, not {clients}: with two, "
            "each learns the other's input; add clients or pass --no-secure"
        )
