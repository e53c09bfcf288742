"""Repeated and nearly repeated broadcasts: what is refused, and what is a documented limit (D1).

A server that gets two sums over cohorts that differ by one client, on the same or nearly the same
broadcast, subtracts. One aggregation cannot see the others, so `protocols` does not compare
broadcasts: the session's owner does (`codream_secure.federation.client`, and its tests). What
`protocols` does in the malicious model is to let cohorts only shrink within a batch (SPEC 8.1).
"""

import numpy as np
import pytest

from protocols import messages
from protocols.audit import LyingServer
from protocols.audit import strategies as some
from protocols.messages import StepRequest
from protocols.policy import Policy

STEPS = 3
MODELS = ["semi-honest", "malicious"]
LENGTH = 5


def batch_of(model):
    return some.make_batch(6, model, steps=STEPS, threshold=4)


def x_of(u: int) -> np.ndarray:
    """A client's answer to the broadcast, and so to the same broadcast again."""
    return np.random.default_rng(u).integers(0, 16, LENGTH, dtype=np.uint32)


def task_of(key: int, broadcast: int = 0):
    return some.make_task(some.section("g", LENGTH, 15), step=key, broadcast=broadcast)


def run_step(server: LyingServer, key: int, cohort, broadcast: int = 0) -> list[int]:
    """An honest step over a cohort that the server has chosen; gives who refused."""
    request = StepRequest(key, messages.encode_set(cohort, server.batch.roster))
    answers = {
        u: server.request(u, request, task_of(key, broadcast), {"g": x_of(u)}) for u in cohort
    }
    for u in cohort:
        server.survivors(u, cohort)
    for u in cohort if server.batch.malicious else ():
        server.proof(u, cohort)
    return [u for u, answer in answers.items() if answer is None]


def lying(model, policy=None) -> LyingServer:
    return LyingServer(some.parties(batch_of(model), policy), some.seeded_entropy(b"differences"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("broadcast", [0, 1], ids=["repeated", "nearly repeated"])
def test_two_cohorts_that_differ_by_one_open_that_client_which_is_a_documented_limit(
    model, broadcast
):
    """Taking a client *out* is not refused here: the difference of two exact sums is its input."""
    server = lying(model)
    roster = server.batch.roster
    victim, rest = roster[2], tuple(u for u in roster if u != roster[2])
    assert run_step(server, 0, roster) == []
    assert run_step(server, 1, rest, broadcast) == []
    sums = {opened.members: opened.totals["g"].astype(int) for opened in server.attacker.opened()}
    assert set(sums) == {frozenset(roster), frozenset(rest)}
    difference = sums[frozenset(roster)] - sums[frozenset(rest)]
    assert difference.tolist() == x_of(victim).tolist()


def test_in_the_malicious_model_nobody_is_taken_out_and_back_in():
    """One client after the other would be read otherwise. (Who was out refuses nothing itself.)"""
    server = lying("malicious")
    roster = server.batch.roster
    without = [tuple(u for u in roster if u != gone) for gone in roster[:2]]
    assert run_step(server, 0, without[0]) == []
    assert run_step(server, 1, without[1]) == list(without[1][1:])
    assert [o.members for o in server.attacker.opened()] == [frozenset(without[0])]
    assert run_step(server, 2, without[0][:-1]) == []  # it may only shrink further


def test_a_policy_that_allows_rejoining_allows_that_attack():
    server = lying("malicious", Policy(rejoin=True))
    roster = server.batch.roster
    for key, gone in enumerate(roster[:2]):
        assert run_step(server, key, tuple(u for u in roster if u != gone)) == []
    assert len(server.attacker.opened()) == 2


def test_in_the_semi_honest_model_who_missed_a_step_is_back_in_the_next():
    server = lying("semi-honest")
    roster = server.batch.roster
    for key, gone in enumerate(roster[:STEPS]):
        assert run_step(server, key, tuple(u for u in roster if u != gone)) == []
    assert len(server.attacker.opened()) == STEPS


@pytest.mark.parametrize("model", MODELS)
def test_one_step_is_never_answered_under_two_broadcasts(model):
    """Within a step there is nothing to subtract: its keys are spent by the first answer."""
    server = lying(model)
    roster = server.batch.roster
    request = StepRequest(0, messages.encode_set(roster, roster))
    for u in roster:
        assert server.request(u, request, task_of(0), {"g": x_of(u)})
        assert server.request(u, request, task_of(0, 1), {"g": x_of(u)}) is None
        fewer = StepRequest(0, messages.encode_set(roster[:4], roster))
        assert server.request(u, fewer, task_of(0), {"g": x_of(u)}) is None
    assert server.attacker.breaches == []
