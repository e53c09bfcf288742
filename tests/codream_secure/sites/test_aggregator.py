"""The aggregator of a run over machines: what it counts."""

import pytest
from machines import OPTIONS

from codream_secure.sites import wire


@pytest.mark.parametrize("malicious", [False, True])
def test_a_broadcast_is_counted_once_for_each_site_that_is_asked(machines, malicious):
    there = machines(malicious=malicious)
    model = "malicious" if malicious else "semi-honest"
    coordinator = there.coordinator({**OPTIONS, "rounds": 1, "threat_model": model})
    list(coordinator.rounds())
    sent = [len(m.broadcast) for _, m in there.messages if isinstance(m, wire.Ask)]
    assert sum(sent) == 4 * coordinator.ledger.by_phase()["broadcast"]["down"]
