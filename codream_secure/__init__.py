"""codream-secure: collaborative dream synthesis in which the server learns nothing but sums.

    import codream_secure as cs

    run = cs.simulate("digits", models=["mlp", "lenet5"], clients=4, rounds=3)
    run.accuracy.clients_mean, run.bytes.per_client_up
    run.clients[0].predict(images)

`docs/api.md` has all of it. Importing this package imports no PyTorch: each name below is loaded
when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from codream_secure._version import __version__
from codream_secure.errors import UserError

if TYPE_CHECKING:
    from codream_secure.api.audit import audit_privacy
    from codream_secure.api.compare import compare_methods
    from codream_secure.api.data import Data
    from codream_secure.api.report import Report, write_report
    from codream_secure.api.simulate import SimulationResult, simulate
    from codream_secure.models.trained import TrainedModel, load_model
    from codream_secure.runs.loggers import Logger

# compare, audit and report are rooms of this package, so their functions have longer names.
_PLACES = {
    "Data": "api.data",
    "Report": "api.report",
    "Logger": "runs.loggers",
    "SimulationResult": "api.simulate",
    "TrainedModel": "models.trained",
    "audit_privacy": "api.audit",
    "compare_methods": "api.compare",
    "load_model": "models.trained",
    "simulate": "api.simulate",
    "write_report": "api.report",
}

__all__ = [
    "Data",
    "Logger",
    "Report",
    "SimulationResult",
    "TrainedModel",
    "UserError",
    "__version__",
    "audit_privacy",
    "compare_methods",
    "load_model",
    "simulate",
    "write_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module has
    """Load a public name when it is first used (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
