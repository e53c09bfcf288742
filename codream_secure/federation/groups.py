"""Which clients dream together: all of them, or each alone (an ablation of the paper)."""

from codream_secure.aggregation.aggregator import Aggregator, Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.dreaming.group import DreamGroup, weight_cap
from codream_secure.federation.members import Federation


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
        weight_cap(federation.config, federation.share),
        federation.label_plan,
    )


def _alone(federation: Federation, client: int) -> Aggregator:
    """Return an aggregator of one client: nothing is sent, so its bytes count nowhere."""
    answers = {client: federation.members[client].client.answer}
    settings = AggregationSettings(roster=(client,))
    return PlainAggregator(answers, settings, Meters(ByteLedger((client,))))
