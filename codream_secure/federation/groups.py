"""Which clients dream together: all of them, or each alone (an ablation of the paper)."""

from codream_secure.aggregation.aggregator import Aggregator, Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.config.resolved import Resolved
from codream_secure.dreaming.group import DreamGroup
from codream_secure.federation.members import Federation

# A client with more examples than this many even shares counts as if it had this many. The cap
# is sent to everybody, so it must not say how many examples any client has.
WEIGHT_CAP_SHARES = 4


def dream_groups(federation: Federation, aggregator: Aggregator) -> list[DreamGroup]:
    """Return one group of all clients, or without collaboration one group per client.

    Args:
        federation: all clients.
        aggregator: sums the answers of the group of all clients.
    """
    if federation.config.dream.collaboration:
        return [_group(federation, (), federation.roster, aggregator)]
    return [
        _group(federation, ("client", c), (c,), _alone(federation, c)) for c in federation.roster
    ]


def _group(
    federation: Federation,
    name: tuple[str | int, ...],
    clients: tuple[int, ...],
    aggregator: Aggregator,
) -> DreamGroup:
    return DreamGroup(
        name,
        {c: federation.members[c].client for c in clients},
        aggregator,
        federation.config,
        federation.spec,
        federation.scale,
        federation.device,
        _weight_cap(federation.config, federation.share),
        federation.label_plan,
    )


def _alone(federation: Federation, client: int) -> Aggregator:
    """Return an aggregator of one client: nothing is sent, so its bytes count nowhere."""
    answers = {client: federation.members[client].client.answer}
    settings = AggregationSettings(roster=(client,))
    return PlainAggregator(answers, settings, Meters(ByteLedger((client,))))


def _weight_cap(config: Resolved, share: int) -> int:
    """Return W, the largest weight of a client; 0: all clients count alike."""
    learning = config.learning
    if learning.weights == "equal":
        return 0
    return learning.weight_cap or WEIGHT_CAP_SHARES * share
