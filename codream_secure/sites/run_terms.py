"""What server and sites derive from a run's settings: can it run over machines, on what terms."""

import math

from codream_secure.aggregation.aggregator import DREAMING
from codream_secure.aggregation.graph import mask_graph
from codream_secure.aggregation.requests import EvaluateRequest, LabelRequest
from codream_secure.aggregation.settings import AggregationSettings, colluders
from codream_secure.config.aliases import option
from codream_secure.config.resolved import PrivateRun, Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.spec import InputSpec
from codream_secure.errors import RequestRefused, UserError
from codream_secure.privacy.accounting import check_budget
from codream_secure.privacy.client_labels import label_plan
from codream_secure.privacy.guarantee import group_epsilon
from codream_secure.privacy.release_plan import ReleasePlan
from codream_secure.sites.allowance import Costs
from codream_secure.sites.history import beginning
from codream_secure.sites.session import Session, Terms
from codream_secure.sites.wire import Hello


def unfit_for_machines(config: Config) -> str:
    """Return why a run can be simulated only; empty if it can run over machines.

    Server and sites both ask this: a site does not rely on its server's checks.
    """
    if not (config.secure.secure and config.dream.collaboration):
        return "over machines sums are always masked, and dreams made together"
    if config.has_common_model:
        return "--method codream-messenger can only be simulated: sites train no common model yet"
    if config.learning.weights == "examples" and not config.learning.weight_cap:
        return "over machines --weights examples needs --weight-cap: sites hold requests to it"
    if config.secure.graph in ("ring", "auto"):
        return (
            f"--graph {config.secure.graph} can only be simulated: over machines a run names "
            "--graph complete or chosen, since sites hold it to that"
        )
    return _unfit_by_site(config) if config.private_clients else ""


def _unfit_by_site(config: Config) -> str:
    """Return why a run with the site as the unit of privacy cannot go over machines."""
    if config.secure.threat_model != "malicious":
        return (
            "--dp-unit client needs --threat-model malicious over machines: without a roster a "
            "server invents the clients whose noise is counted"
        )
    if config.run.seed is not None:
        return "--dp-unit client takes no --seed over machines: the server would know the noise"
    return ""


def aggregation_settings(config: Resolved, *, evaluates: bool) -> AggregationSettings:
    """Return who takes part in the run's sums, and how many sums there are.

    Args:
        config: the run's settings.
        evaluates: whether sites are asked for accuracies, once a round.
    """
    secure, dream = config.secure, config.dream
    # Clients as the unit: labels alone are summed.
    sums = 1 if config.private_clients else dream.sums_per_synthesis
    per_round = dream.syntheses * sums + evaluates
    class_means = bool(config.private_training and config.privacy.statistics_eps)
    key_steps = secure.key_steps or per_round
    return AggregationSettings(
        roster=tuple(range(config.data.clients)),
        threshold=secure.threshold,
        threat_model=secure.threat_model,
        rejoin=secure.rejoin,
        key_steps=key_steps,
        expected_steps=dream.rounds * per_round + class_means,
        seed=config.run.seed or 0,
        graph=mask_graph(config, key_steps),
    )


def run_terms(config: Resolved) -> Terms:
    """Return the terms on which a site takes part in the run's sums."""
    settings = aggregation_settings(config, evaluates=True)
    chosen = settings.graph.chosen
    kinds = {*DREAMING, EvaluateRequest.__name__}
    if config.private_clients:
        # Nothing else has noise: models are trained without, so that an accuracy would leak.
        kinds = {LabelRequest.__name__}
    return Terms(
        clients=len(settings.roster),
        threshold=settings.needed,
        threat_model=settings.threat_model,
        colluders=colluders(settings),
        key_steps=settings.key_steps,
        rejoin=settings.rejoin,
        kinds=tuple(sorted(kinds)),
        chosen=None if chosen is None else (chosen.degree, chosen.threshold),
    )


def run_label_plan(config: Resolved, spec: InputSpec) -> ReleasePlan | None:
    """Return the plan of a run's noisy labels; None unless clients are the unit of its privacy.

    Raises:
        UserError: no noise fits the budget, or it would drown the labels.

    Guarantee:
        As `label_plan`. Server and sites compute it from the same public settings, so a site knows
        the clip, the noise and the number of sums before it is asked for one, and answers under
        no others.
    """
    if isinstance(config, PrivateRun) and config.private_clients:
        return label_plan(config, spec)
    return None


def run_costs(config: Resolved, spec: InputSpec) -> Costs | None:
    """Return what a run may cost a site, by unit; None without DP.

    Raises:
        UserError: epsilon or delta is out of range, or as `run_label_plan`.

    Guarantee:
        With clients as the unit, the neighbour of a site is one that contributes zeros. So one
        example of the site changes twice as much at most: once to zeros and once back. That is the
        epsilon of two units together. One example as the unit bounds nothing about a site.
    """
    if not isinstance(config, PrivateRun):
        return None
    epsilon, delta = config.privacy.dp_eps, config.privacy.dp_delta
    check_budget(epsilon, delta)
    plan = run_label_plan(config, spec)
    if plan is None:
        return Costs(epsilon, math.inf, delta)
    return Costs(group_epsilon((plan.planned(),), delta, 2), epsilon, delta)


def proposed(message: Hello) -> tuple[Session, dict[str, object], Costs | None]:
    """Return a proposed run, its options, and what it may cost.

    Raises:
        RequestRefused: a run that cannot go over machines, or options that are not exactly what
            resolving them gives.
    """
    try:
        asked_for = Config.from_options(message.options)
        # The server's own words are checked, before defaults fill in what it left out.
        if reason := unfit_for_machines(asked_for):
            raise RequestRefused(reason)
        config = resolve(asked_for)
        # A rule that changes or fills in something must not hide what the server asked for.
        for name, value in config.options().items():
            if message.options.get(name) != value:
                raise RequestRefused(f"{option(name)} is not what the run's settings resolve to")
        # Before anything that takes longer with more clients, as a sparse graph's parameters do.
        clients = config.data.clients
        if message.identities and len(message.identities) != clients:
            raise RequestRefused(
                f"a run of {clients} sites, and the roster has {len(message.identities)}"
            )
        terms = run_terms(config)
        if min(message.spec) < 1:
            raise RequestRefused(f"no images have the shape {message.spec}")
        costs = run_costs(config, InputSpec(*message.spec))
    except UserError as error:  # about the server's words alone
        raise RequestRefused(str(error)) from None
    session = Session(
        session=message.session,
        options=message.options,
        spec=message.spec,
        identities=message.identities,
        terms=terms,
        history=beginning(message),
    )
    return session, config.options(), costs
