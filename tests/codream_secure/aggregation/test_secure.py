"""What masks need: three clients, and round trips for keys."""

import pytest
from aggregators import build, dream_request, outcomes

from codream_secure.errors import UserError


@pytest.mark.parametrize(("model", "online"), [("semi-honest", 2), ("malicious", 3)])
@pytest.mark.parametrize("key_steps", [1, 4, 7])
def test_key_exchanges_after_the_first_cost_no_round_trips_but_delivery(model, online, key_steps):
    aggregator, _ = build(secure=True, threat_model=model, key_steps=key_steps, expected_steps=9)
    list(outcomes(aggregator, 9))
    assert aggregator.key_exchanges == -(-9 // key_steps)
    # In the malicious model every batch delivers its bundles before its first step (SPEC 6.2).
    trips = 2 + 9 * online + (aggregator.key_exchanges if model == "malicious" else 0)
    assert aggregator.round_trips == trips
    assert aggregator.round_trips_per_step == round(trips / 9, 3)
    assert aggregator.completed_share == 1


def test_two_clients_are_refused_under_masks_and_fine_in_the_clear():
    with pytest.raises(UserError, match="at least 3 clients"):
        build(secure=True, n=2)
    plain, _ = build(secure=False, n=2)
    assert plain.sum(dream_request()).count == 2
