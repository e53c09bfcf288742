"""The door between dreaming and the protocol: masked and plain sums are the same sums."""

from itertools import pairwise

import numpy as np
import pytest

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.attendance import KEY_ATTEMPTS
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.requests import (
    VERSION,
    DreamRequest,
    LabelRequest,
    LabelTerms,
)
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.errors import RequestRefused, StepAborted, UserError
from protocols.errors import LocalProtocolError
from protocols.phases import Phase, rounds


def dream_request(step=0):
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


def label_request():
    return LabelRequest(
        version=VERSION,
        round=1,
        batch=0,
        shape=(2, 1, 4, 4),
        dreams=bytes(32),
        labels=LabelTerms(bits=8, clip=0.5, kind="probabilities", temperature=4.0, classes=3),
    )


def build(*, secure, n=5, tap=None, **changes):
    """Clients whose answer is a bit of their own (2**(id % 4)), so that a sum names who is in."""

    def answer(identity):
        def codes(broadcast, step):
            name, size = ("gradient", 32) if b"dreams" in broadcast[:12] else ("labels", 6)
            return {name: np.full(size, 1 << (identity % 4), np.uint32)}

        return codes

    roster = tuple(range(n))
    settings = AggregationSettings(roster=roster, **changes)
    meters = Meters(ByteLedger(roster))
    clients = {c: answer(c) for c in roster}
    if secure:
        aggregator = SecureAggregator(clients, settings, meters, session=bytes(32), tap=tap)
    else:
        aggregator = PlainAggregator(clients, settings, meters)
    return aggregator, meters


def outcomes(aggregator, steps=25):
    for step in range(steps):
        try:
            total = aggregator.sum(dream_request(step))
            yield total.count, total.totals["gradient"].tolist()
        except StepAborted:
            yield None


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("key_steps", [1, 4, 40])
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


@pytest.mark.parametrize("model", ["semi-honest", "malicious"])
def test_all_rounds_see_dropouts_at_the_asked_rate(model):
    settings = AggregationSettings(roster=tuple(range(10)), dropout=0.2, seed=3, threat_model=model)
    offline, online = rounds(model)[:2], rounds(model)[2:]
    for draw, phases in ((settings.key_drops, offline), (settings.step_drops, online)):
        drops = [drop for step in range(400) for drop in draw(step).drops.values()]
        assert len(drops) == pytest.approx(800, rel=0.15)
        for phase in phases:
            assert drops.count(phase) == pytest.approx(800 / len(phases), rel=0.25)


@pytest.mark.parametrize(("model", "online"), [("semi-honest", 2), ("malicious", 3)])
@pytest.mark.parametrize("key_steps", [1, 4, 7])
def test_only_the_first_key_exchange_costs_round_trips(model, online, key_steps):
    aggregator, _ = build(secure=True, threat_model=model, key_steps=key_steps, expected_steps=9)
    list(outcomes(aggregator, 9))
    assert aggregator.round_trips == 2 + 9 * online
    assert aggregator.round_trips_per_step == round(2 / 9 + online, 3)
    assert aggregator.key_exchanges == -(-9 // key_steps)
    assert aggregator.completed_share == 1


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


@pytest.mark.parametrize("n", [3, 4, 5, 10, 30])
def test_how_many_clients_may_collude(n):
    for threshold in range(n // 2 + 1, n + 1):
        lying, _ = build(secure=False, n=n, threshold=threshold, threat_model="malicious")
        assert 2 * threshold > n + lying.colluders
        assert threshold - lying.colluders >= 2
        curious, _ = build(secure=False, n=n, threshold=threshold)
        assert curious.colluders == threshold - 1


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


def test_two_clients_are_refused_under_masks_and_fine_in_the_clear():
    with pytest.raises(UserError, match="at least 3 clients"):
        build(secure=True, n=2)
    plain, _ = build(secure=False, n=2)
    assert plain.sum(dream_request()).count == 2


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
