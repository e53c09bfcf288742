"""Plan and forecast of client-level DP: noisy sums of soft labels are all that is released.

`label_grid` has the mechanism. Dreams are made without asking the clients, so only labels cost
privacy.
"""

import math

from codream_secure.config.resolved import PrivateRun, Resolved
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.privacy.accounting import CLIENTS, check_meaning
from codream_secure.privacy.forecast import Forecast, predict
from codream_secure.privacy.label_grid import LEVELS, REACH, LabelGrid
from codream_secure.privacy.release_plan import Released, ReleasePlan

NAME = "labels"


def label_plan(config: PrivateRun, spec: InputSpec) -> ReleasePlan:
    """Return the plan of all label sums of a run.

    Args:
        config: resolved, with ``--dp-unit client``.
        spec: shape of an image and the number of classes.

    Raises:
        UserError: the noise would drown the labels, and `--accept-low-utility` is not set.

    Guarantee:
        As `ReleasePlan`, with respect to adding or removing one client and all its data.
    """
    grid = LabelGrid(config.dream.dreams, spec.classes)
    most = config.dream.rounds * config.dream.dream_batches
    check_meaning(config.privacy.dp_delta, config.data.clients)
    _check_forecast(config, label_forecast(config, spec))
    kind = Released(
        name=NAME,
        unit="client",
        adjacency=CLIENTS,
        length=grid.length,
        l2=grid.l2,
        clip=grid.clip,
        largest=REACH * LEVELS,
    )
    return ReleasePlan(config, kind, most)


def label_forecast(config: PrivateRun, spec: InputSpec) -> Forecast:
    """Return the forecast for the labels of a run, under the assumption that all clients agree."""
    dream, clients = config.dream, config.data.clients
    return predict(
        "client",
        contributions=clients,
        clients=clients,
        dimensions=dream.dreams * spec.classes,
        releases=dream.rounds * dream.dream_batches,
        epsilon=config.privacy.dp_eps,
        delta=config.privacy.dp_delta,
    )


def prediction(config: Resolved, spec: InputSpec) -> str | None:
    """Return the forecast for a run's labels in words; None without client-level DP."""
    if not (isinstance(config, PrivateRun) and config.private_clients):
        return None
    return f"labels of clients that agree: {_in_words(config, label_forecast(config, spec))}"


def _in_words(config: Resolved, found: Forecast) -> str:
    releases = config.dream.rounds * config.dream.dream_batches
    needed = math.ceil(found.needed * math.sqrt(releases))
    return (
        f"predicted signal to noise {found.ratio_each:.2g} a release, and 1 takes {needed} clients"
    )


def _check_forecast(config: PrivateRun, found: Forecast) -> None:
    if found.ratio_each >= 1 or config.privacy.accept_low_utility:
        return
    raise UserError(
        f"the noise would drown the labels: {_in_words(config, found)}; ask for fewer --dreams or "
        "--rounds or more --dp-eps, or pass --accept-low-utility"
    )
