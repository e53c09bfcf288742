"""Sums without masks: exact, over whoever stays, and every input counted as it is sent."""

import msgspec
import numpy as np
import pytest
from aggregators import build, dream_request, label_request, outcomes

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.plain import ClearInput, PlainAggregator
from codream_secure.aggregation.requests import VERSION
from codream_secure.aggregation.sections import sections
from codream_secure.aggregation.settings import AggregationSettings
from protocols.primitives.packing import pack


@pytest.mark.parametrize("request_", [dream_request(), label_request()], ids=["dreams", "labels"])
def test_the_sum_is_that_of_integers_whatever_they_are(request_):
    draw = np.random.default_rng(0)
    wanted = sections(request_)
    codes = {
        client: {s.name: draw.integers(0, s.maximum + 1, s.length, np.uint32) for s in wanted}
        for client in range(5)
    }
    answers = {client: lambda *_, own=own: own for client, own in codes.items()}
    ledger = ByteLedger(range(5))
    settings = AggregationSettings(roster=tuple(range(5)))
    found = PlainAggregator(answers, settings, Meters(ledger)).sum(request_)
    assert found.count == 5
    for s in wanted:
        expected = np.sum([own[s.name].astype(np.int64) for own in codes.values()], axis=0)
        assert (found.totals[s.name] == expected).all()
    parts = tuple(pack(codes[0][s.name], s.maximum.bit_length()) for s in wanted)
    sent = msgspec.msgpack.encode(ClearInput(version=VERSION, step=0, sections=parts))
    assert ledger.by_client()[0]["up"] == len(sent)


def test_it_waits_once_a_step_and_makes_no_keys():
    aggregator, meters = build(secure=False)
    assert len(list(outcomes(aggregator, 3))) == 3
    assert aggregator.round_trips == aggregator.steps == 3
    assert aggregator.round_trips_per_step == 1
    phases = meters.ledger.by_phase()
    assert phases["advertise_keys"] == phases["unmasking"] == {"up": 0, "down": 0}


def test_it_loses_the_same_clients_as_masked_sums():
    plain, masked = (
        list(outcomes(build(secure=secure, n=6, dropout=0.15, seed=0)[0], 12))
        for secure in (False, True)
    )
    assert plain == masked
    assert None in plain
    assert len({found[0] for found in plain if found}) > 1
