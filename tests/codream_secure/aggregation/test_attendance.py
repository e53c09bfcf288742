"""Who attends which step, also after a restart."""

import os

import numpy as np
import pytest

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.requests import VERSION, DreamRequest
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.errors import StepAborted


def request(step):
    return DreamRequest(
        version=VERSION,
        round=1,
        batch=0,
        dream_step=step,
        shape=(2, 1, 4, 4),
        dreams=bytes(32),
        bits=4,
        clip=1.0,
        entropy_weight=1.0,
        bn_weight=0.0,
        balance_weight=0.0,
    )


def aggregator(*, secure, roster=tuple(range(5)), **changes):
    """Clients whose answer is a bit of their own, so that a sum names who is in it."""
    clients = {
        c: lambda _, __, c=c: {"gradient": np.full(32, 1 << (c % 4), np.uint32)} for c in roster
    }
    settings = AggregationSettings(roster=roster, seed=1, **changes)
    meters = Meters(ByteLedger(roster))
    if secure:
        return SecureAggregator(clients, settings, meters, session=os.urandom(32))
    return PlainAggregator(clients, settings, meters)


def outcome(sums, step):
    try:
        total = sums.sum(request(step))
    except StepAborted:
        return None
    return total.count, total.totals["gradient"].tolist()


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("key_steps", [1, 4, 40])
@pytest.mark.parametrize(
    "model", [("semi-honest", False), ("malicious", False), ("malicious", True)], ids=str
)
def test_the_same_steps_fail_when_every_step_has_a_process_of_its_own(secure, key_steps, model):
    changes = {"threat_model": model[0], "rejoin": model[1], "key_steps": key_steps}
    changes |= {"dropout": 0.25, "expected_steps": 11}
    whole, part = aggregator(secure=secure, **changes), aggregator(secure=secure, **changes)
    expected, found = [], []
    for step in range(12):
        expected.append(outcome(whole, step))
        found.append(outcome(part, step))
        state = part.state()
        assert state == whole.state()
        part = aggregator(secure=secure, **changes)
        part.restore(state)
    assert found == expected
    assert None in expected
    assert part.round_trips_per_step == whole.round_trips_per_step
