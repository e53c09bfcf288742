"""The reference attacker opens what can be opened, and nothing of what must not be."""

import pytest
from secagg_helpers import fixed_entropy, make_params, malicious_params, signing_keys

from protocols import messages
from protocols.audit import LyingServer
from protocols.audit import strategies as some
from protocols.client import step as client_step
from protocols.client.states import Party
from protocols.messages import StepRequest
from protocols.params import BatchParams
from protocols.policy import Policy

M = 2
CORRUPT = 10


def batch_of(params) -> BatchParams:
    return BatchParams(
        session=params.session,
        batch=1,
        steps=M,
        roster=params.roster,
        threshold=params.threshold,
        threat_model=params.threat_model,
        identities=params.identities,
    )


def task_of(step: int, broadcast: int = 0):
    """One-hot inputs of 6 clients: the sum names who is in it."""
    return some.make_task(some.section(some.WHO, 6, 1), step=step, broadcast=broadcast)


one_hot = some.one_hot


def lying(params, corrupt=(), policy: Policy | None = None) -> LyingServer:
    batch = batch_of(params)
    keys = signing_keys(batch.roster) if batch.malicious else {}
    parties = {u: Party(batch, u, keys.get(u), policy) for u in batch.roster}
    return LyingServer(parties, fixed_entropy(), corrupt)


def names(opened, roster) -> list[int]:
    return some.named(roster, opened.totals[some.WHO])


def full(server: LyingServer, key: int = 0) -> StepRequest:
    roster = server.batch.roster
    return StepRequest(key, messages.encode_set(roster, roster))


PARAMS = malicious_params(6, threshold=4)
BATCH = batch_of(PARAMS)
POLICY = Policy(colluders=1)
HONEST = tuple(u for u in BATCH.roster if u != CORRUPT)


# The attacker works ----------------------------------------------------------------------------


@pytest.mark.parametrize("malicious", [False, True])
def test_an_honest_step_opens_its_sum_and_nothing_else(malicious):
    params = malicious_params(6) if malicious else make_params(6)
    server = lying(params, policy=Policy() if malicious else None)
    roster = server.batch.roster
    for u in roster:
        assert server.request(u, full(server), task_of(0), one_hot(roster, u))
    assert server.attacker.opened() == []
    for u in roster[:-1]:
        assert server.survivors(u, roster[:-1])
    for u in roster[:-1] if malicious else ():
        assert server.proof(u, roster[:-1])
    (opened,) = server.attacker.opened()
    assert opened.members == set(roster[:-1])
    assert names(opened, roster) == list(roster[:-1])


def test_the_attacker_opens_an_input_where_the_model_does_not_hold():
    """Semi-honest clients, a server that lies about who dropped, and 2t = n + n_C: t = 4 of 6."""
    params = make_params(6, threshold=4)
    roster = params.roster
    for colluders, expected in ((1, False), (2, True)):
        server = lying(params, roster[:colluders])
        for u in roster:
            server.request(u, full(server), task_of(0), one_hot(roster, u))
        for u, members in zip(roster[2:], [roster, roster[:5], roster[:5], roster], strict=True):
            server.survivors(u, members)
        alone = [o for o in server.attacker.opened() if o.members == {roster[5]}]
        assert bool(alone) == expected
        assert all(names(opened, roster) == [roster[5]] for opened in alone)


def test_nobody_in_the_active_set_can_be_left_out_of_the_sum_unseen():
    """The server lists a client as active and a survivor, and cuts it from all others.

    Before, five of six went on, and two sums over "the same" clients differed by one (SPEC 8.1).
    """
    params = malicious_params(6, threshold=5)
    server = lying(params, policy=Policy(colluders=1))
    roster = server.batch.roster
    cut = StepRequest(0, messages.encode_set(roster, roster), tuple((0, i) for i in range(1, 6)))
    for u in roster[1:]:
        assert server.request(u, cut, task_of(0), one_hot(roster, u)) is None
    for ask in (server.survivors, server.proof):
        for u in roster[1:]:
            ask(u, roster)
    assert server.attacker.opened() == []


def test_without_the_proof_check_too_small_a_sum_opens(monkeypatch):
    """Every client is told another U3, so that the seeds of three clients come out."""
    roster = BATCH.roster
    _, v1, v2, w1, w2, w3 = roster
    lies = {w1: {w2, w3}, w2: {w1, w3}, w3: {w1, w2}, v1: {w1, w2}, v2: {w3}}

    def attack() -> list[frozenset[int]]:
        server = lying(PARAMS, (CORRUPT,), POLICY)
        for u in roster:
            server.request(u, full(server), task_of(0), one_hot(roster, u))
        for u, gone in lies.items():
            server.survivors(u, set(roster) - gone)
            server.proof(u, set(roster) - gone)
        opened = [o.members & set(HONEST) for o in server.attacker.opened()]
        return [honest for honest in opened if honest]  # the corrupt client's own input is no news

    assert attack() == []
    monkeypatch.setattr(client_step, "check_proof", lambda *args: None)
    assert {v1, v2} in attack()
