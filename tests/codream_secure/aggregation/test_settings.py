"""Simulated dropouts, and how many clients may collude."""

import pytest
from aggregators import build

from codream_secure.aggregation.settings import AggregationSettings
from protocols.phases import round_phases


@pytest.mark.parametrize("model", ["semi-honest", "malicious"])
def test_all_rounds_see_dropouts_at_the_asked_rate(model):
    settings = AggregationSettings(roster=tuple(range(10)), dropout=0.2, seed=3, threat_model=model)
    offline, online = round_phases(model)[:2], round_phases(model)[2:]
    for draw, phases in ((settings.key_drops, offline), (settings.step_drops, online)):
        drops = [drop for step in range(400) for drop in draw(step).drops.values()]
        assert len(drops) == pytest.approx(800, rel=0.15)
        for phase in phases:
            assert drops.count(phase) == pytest.approx(800 / len(phases), rel=0.25)


@pytest.mark.parametrize("n", [3, 4, 5, 10, 30])
def test_how_many_clients_may_collude(n):
    for threshold in range(n // 2 + 1, n + 1):
        lying, _ = build(secure=False, n=n, threshold=threshold, threat_model="malicious")
        assert 2 * threshold > n + lying.colluders
        assert threshold - lying.colluders >= 2
        curious, _ = build(secure=False, n=n, threshold=threshold)
        assert curious.colluders == threshold - 1
