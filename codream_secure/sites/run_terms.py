"""What server and sites derive from a run's settings: can it run over machines, on what terms."""

from codream_secure.aggregation.aggregator import DREAMING
from codream_secure.aggregation.requests import EvaluateRequest
from codream_secure.aggregation.settings import AggregationSettings, colluders
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import RequestRefused, UserError
from codream_secure.sites.history import beginning
from codream_secure.sites.session import Session, Terms
from codream_secure.sites.wire import Hello


def unfit_for_machines(config: Config) -> str:
    """Return why a run can be simulated only; empty if it can run over machines.

    Server and sites both ask this: a site does not rely on its server's checks.
    """
    if not (config.secure.secure and config.dream.collaboration):
        return "over machines sums are always masked, and dreams made together"
    if config.learning.weights == "examples" and not config.learning.weight_cap:
        return "over machines --weights examples needs --weight-cap: sites hold requests to it"
    if config.private_clients:
        return "--dp-unit client is for simulations; over machines use example"
    return ""


def aggregation_settings(config: Resolved, *, evaluates: bool) -> AggregationSettings:
    """Return who takes part in the run's sums, and how many sums there are.

    Args:
        config: the run's settings.
        evaluates: whether sites are asked for accuracies, once a round.
    """
    secure, dream = config.secure, config.dream
    per_round = dream.syntheses * dream.sums_per_synthesis + evaluates
    class_means = bool(config.private_training and config.privacy.statistics_eps)
    return AggregationSettings(
        roster=tuple(range(config.data.clients)),
        threshold=secure.threshold,
        threat_model=secure.threat_model,
        rejoin=secure.rejoin,
        key_steps=secure.key_steps or per_round,
        expected_steps=dream.rounds * per_round + class_means,
        seed=config.run.seed or 0,
    )


def run_terms(config: Resolved) -> Terms:
    """Return the terms on which a site takes part in the run's sums."""
    settings = aggregation_settings(config, evaluates=True)
    return Terms(
        clients=len(settings.roster),
        threshold=settings.needed,
        threat_model=settings.threat_model,
        colluders=colluders(settings),
        key_steps=settings.key_steps,
        rejoin=settings.rejoin,
        kinds=tuple(sorted({*DREAMING, EvaluateRequest.__name__})),
    )


def proposed(message: Hello) -> tuple[Session, dict[str, object]]:
    """Return the run that a server proposes, and its options with all defaults filled in.

    Raises:
        RequestRefused: a run that cannot go over machines, or no settings of a run.
    """
    try:
        asked_for = Config.from_options(message.options)
        # The server's own words are checked, before defaults fill in what it left out.
        if reason := unfit_for_machines(asked_for):
            raise RequestRefused(reason)
        config = resolve(asked_for)
        terms = run_terms(config)
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
    return session, config.options()
