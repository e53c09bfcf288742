"""Requests, and aggregators over clients that need no model."""

import numpy as np

from codream_secure.aggregation.aggregator import Meters
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
from codream_secure.errors import StepAborted


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


def build(*, secure, n=5, tap=None, session=bytes(32), **changes):
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
        aggregator = SecureAggregator(clients, settings, meters, session=session, tap=tap)
    else:
        aggregator = PlainAggregator(clients, settings, meters)
    return aggregator, meters


def outcome(aggregator, step):
    """Return who is in the sum of a step and what it is; None if the step was aborted."""
    try:
        total = aggregator.sum(dream_request(step))
    except StepAborted:
        return None
    return total.count, total.totals["gradient"].tolist()


def outcomes(aggregator, steps=25):
    for step in range(steps):
        yield outcome(aggregator, step)
