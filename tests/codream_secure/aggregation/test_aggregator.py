"""Masked and plain sums are the same sums, and every message is counted."""

import numpy as np
import pytest
from aggregators import build, dream_request, label_request, outcomes

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.errors import RequestRefused, StepAborted
from protocols.errors import LocalProtocolError
from protocols.phases import Phase


# Without dropouts one number of steps to a batch of keys is like another.
@pytest.mark.parametrize(
    ("dropout", "key_steps"), [(0.0, 4), (0.1, 1), (0.1, 40), (0.3, 1), (0.3, 4), (0.3, 40)]
)
@pytest.mark.parametrize(
    "model", [("semi-honest", False), ("malicious", False), ("malicious", True)], ids=str
)
def test_masked_and_plain_sums_agree_for_every_dropout_pattern(dropout, key_steps, model):
    changes = {"threat_model": model[0], "rejoin": model[1]}
    changes |= {"dropout": dropout, "key_steps": key_steps, "expected_steps": 21}
    masked, _ = build(secure=True, **changes)
    plain, _ = build(secure=False, **changes)
    assert list(outcomes(masked)) == list(outcomes(plain))
    assert masked.aborted_steps == plain.aborted_steps
    assert masked.key_exchanges == plain.key_exchanges
    if dropout == 0.3:
        assert 0 < masked.aborted_steps < 25


def test_an_aborted_step_uses_up_its_number_and_is_counted():
    aggregator, _ = build(secure=True, dropout=1.0)
    for expected in (1, 2):
        with pytest.raises(StepAborted):
            aggregator.sum(dream_request())
        assert (aggregator.steps, aggregator.aborted_steps) == (expected, expected)


@pytest.mark.parametrize("secure", [True, False])
def test_the_ledger_counts_every_encoded_message(secure):
    seen = {}

    def tap(phase, direction, client, message):
        seen[phase, direction] = seen.get((phase, direction), 0) + len(message)

    aggregator, meters = build(secure=secure, tap=tap if secure else None)
    aggregator.sum(dream_request())
    phases = meters.ledger.by_phase()
    assert phases["broadcast"]["down"] > 32
    assert phases["masked_input"]["up"] > 32 * 4 / 8
    if secure:
        for (phase, direction), size in seen.items():
            assert phases[phase][direction] == round(size / 5)
    else:
        assert sum(phases[p]["up"] for p in ("advertise_keys", "share_keys", "unmasking")) == 0


@pytest.mark.parametrize("secure", [True, False])
def test_labels_are_counted_under_their_own_phase_both_ways(secure):
    aggregator, meters = build(secure=secure)
    aggregator.sum(label_request())
    phases = meters.ledger.by_phase()
    assert phases["labels"]["up"] > 0
    assert phases["labels"]["down"] > 0
    assert phases["masked_input"]["up"] == 0


def test_bytes_of_aborted_steps_count_too():
    aggregator, meters = build(secure=True, dropout=0.9, seed=1)
    with pytest.raises(StepAborted):
        aggregator.sum(dream_request())
    assert meters.ledger.per_client("up") > 0


def test_clients_that_are_gone_before_masking_compute_nothing():
    asked = []
    roster = tuple(range(6))
    settings = AggregationSettings(roster=roster, dropout=0.25, threshold=4, seed=2)

    def answer(identity):
        def codes(broadcast, step):
            asked.append((step, identity))
            return {"gradient": np.zeros(32, np.uint32)}

        return codes

    aggregator = SecureAggregator(
        {c: answer(c) for c in roster}, settings, Meters(ByteLedger(roster)), session=bytes(32)
    )
    list(outcomes(aggregator, 20))
    for step in range(20):
        drops = settings.step_drops(step)
        gone = {c for c in drops.drops if drops.silent(c, Phase.MASKED_INPUT)}
        assert not gone & {identity for at, identity in asked if at == step}


@pytest.mark.parametrize("error", [RequestRefused("policy"), LocalProtocolError("NaN")])
@pytest.mark.parametrize("secure", [True, False])
def test_a_client_that_cannot_answer_is_a_dropout_and_not_the_end(secure, error):
    aggregator, _ = build(secure=secure)

    def refuse(broadcast, step):
        raise error

    aggregator._clients[1] = refuse
    total = aggregator.sum(dream_request())
    assert total.count == 4
    assert (total.totals["gradient"] == 1 + 4 + 8 + 1).all()
    assert aggregator.unanswered_requests == 1
