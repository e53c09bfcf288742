"""Who takes part in which step: after dropouts, failed key exchanges and restarts."""

import os
from itertools import pairwise

import pytest
from aggregators import build, dream_request, outcome, outcomes

from codream_secure.aggregation.attendance import KEY_ATTEMPTS
from codream_secure.errors import StepAborted


def fresh(**changes):
    return build(seed=1, session=os.urandom(32), **changes)[0]


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("key_steps", [1, 4, 40])
@pytest.mark.parametrize(
    "model", [("semi-honest", False), ("malicious", False), ("malicious", True)], ids=str
)
def test_the_same_steps_fail_when_every_step_has_a_process_of_its_own(secure, key_steps, model):
    changes = {"threat_model": model[0], "rejoin": model[1], "key_steps": key_steps}
    changes |= {"dropout": 0.25, "expected_steps": 11}
    whole, part = fresh(secure=secure, **changes), fresh(secure=secure, **changes)
    expected, found = [], []
    for step in range(12):
        expected.append(outcome(whole, step))
        found.append(outcome(part, step))
        state = part.state()
        assert state == whole.state()
        part = fresh(secure=secure, **changes)
        part.restore(state)
    assert found == expected
    assert None in expected
    assert part.round_trips_per_step == whole.round_trips_per_step


def test_a_lost_key_exchange_is_tried_again_until_everybody_has_shared():
    aggregator, _ = build(secure=True, dropout=0.2, n=5, seed=1, key_steps=50)
    members = []
    for _ in outcomes(aggregator, 30):
        members.append(aggregator._attendance.members)
    assert aggregator.key_exchanges > 1
    assert members[0] == tuple(range(5))
    hopeless, _ = build(secure=True, dropout=1.0)
    with pytest.raises(StepAborted):
        hopeless.sum(dream_request())
    assert hopeless.key_exchanges == KEY_ATTEMPTS


def test_a_client_that_missed_a_step_is_back_unless_the_server_may_lie():
    seen = {}
    for model, rejoin in (("semi-honest", False), ("malicious", False), ("malicious", True)):
        aggregator, _ = build(
            secure=True, n=10, dropout=0.1, key_steps=30, threat_model=model, rejoin=rejoin
        )
        sizes = [outcome[0] for outcome in outcomes(aggregator, 12) if outcome]
        seen[model, rejoin] = sum(b > a for a, b in pairwise(sizes))
    assert seen["semi-honest", False] > 2
    assert seen["malicious", True] > 2
    assert seen["malicious", False] <= 2 + 1
