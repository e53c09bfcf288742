"""A lying server, clients that restart at any time, and an attacker that does all the algebra."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from secagg_helpers import fixed_entropy, make_params, malicious_params, signing_keys

from protocols import client as client_module
from protocols import messages
from protocols.messages import StepRequest
from protocols.params import BatchParams
from protocols.policy import Policy
from protocols.preprocessing import Party
from protocols.testing import LyingServer, member_sets, step_requests

M = 2
LENGTH = 6
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
    """One-hot inputs of 5 clients: the sum names who is in it."""
    digest = bytes([broadcast]) * 32
    return make_params(6, ("g", LENGTH, 4), step=step, broadcast_digest=digest).task


def one_hot(roster, u) -> dict[str, np.ndarray]:
    vector = np.zeros(LENGTH, np.uint32)
    vector[roster.index(u)] = 1
    return {"g": vector}


def lying(params, corrupt=(), policy: Policy | None = None) -> LyingServer:
    batch = batch_of(params)
    keys = signing_keys(batch.roster) if batch.malicious else {}
    parties = {u: Party(batch, u, keys.get(u), policy) for u in batch.roster}
    return LyingServer(parties, fixed_entropy(), corrupt)


def names(opened, roster) -> list[int]:
    return [u for u, count in zip(roster, opened.totals["g"], strict=False) if count]


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
    monkeypatch.setattr(client_module, "check_proof", lambda *args: None)
    assert {v1, v2} in attack()


# The machine ------------------------------------------------------------------------------------

clients = st.sampled_from(BATCH.roster)


class LyingServerMachine(RuleBasedStateMachine):
    """Any request to anybody in any order; n = 6, t = 4, one corrupt client."""

    def __init__(self) -> None:
        super().__init__()
        self.server = lying(PARAMS, (CORRUPT,), POLICY)

    @rule(u=clients, request=step_requests(BATCH), broadcast=st.integers(0, 1))
    def request_of_any_kind(self, u, request, broadcast):
        task = task_of(request.key, broadcast)
        self.server.request(u, request, task, one_hot(BATCH.roster, u))

    @rule(members=member_sets(BATCH), key=st.integers(0, M - 1), split=st.integers(0, 6))
    def same_request_to_all_but_the_broadcast(self, members, key, split):
        request = StepRequest(key, messages.encode_set(members, BATCH.roster))
        for index, u in enumerate(members):
            task = task_of(key, int(index < split))
            self.server.request(u, request, task, one_hot(BATCH.roster, u))

    @rule(u=clients, members=member_sets(BATCH))
    def survivor_set_of_any_kind(self, u, members):
        self.server.survivors(u, members)

    @rule(first=member_sets(BATCH), second=member_sets(BATCH), split=st.sampled_from([6, 6, 3, 4]))
    def two_survivor_sets_to_who_can_accept_them(self, first, second, split):
        for index, u in enumerate(BATCH.roster):
            chosen = first if index < split else second
            if u in chosen:
                self.server.survivors(u, chosen)

    @rule(like=clients, members=member_sets(BATCH))
    def corrupt_client_signs_anything(self, like, members):
        if like in self.server.told:
            self.server.sign_for(CORRUPT, like, members)

    @rule(
        key=st.integers(0, M - 1),
        broadcasts=st.sampled_from([6, 6, 3]),
        first=member_sets(BATCH),
        second=member_sets(BATCH),
        split=st.sampled_from([6, 6, 3, 4]),
    )
    def a_whole_step_of_lies(self, key, broadcasts, first, second, split):
        self.same_request_to_all_but_the_broadcast(BATCH.roster, key, 6 - broadcasts)
        self.two_survivor_sets_to_who_can_accept_them(first, second, split)
        for like, members in ((BATCH.roster[1], first), (BATCH.roster[5], second)):
            self.corrupt_client_signs_anything(like, members)
        self.to_everybody_the_proof_of_what_it_was_told()

    @rule(u=clients, members=member_sets(BATCH))
    def proof_about_any_set(self, u, members):
        self.server.proof(u, members)

    @rule()
    def to_everybody_the_proof_of_what_it_was_told(self):
        for u, members in list(self.server.told_survivors.items()):
            self.server.proof(u, members)

    @rule(u=clients)
    def restart(self, u):
        self.server.restart(u)

    @invariant()
    def nobody_gives_both_kinds_or_two_masked_inputs(self):
        attacker = self.server.attacker
        assert all(len(kinds) == 1 for kinds in attacker.given.values())
        assert all(len(answers) == 1 for answers in attacker.answers.values())

    @invariant()
    def what_opens_is_the_sum_of_enough_honest_clients(self):
        for opened in self.server.attacker.opened():
            honest = opened.members & set(HONEST)
            assert not honest or len(honest) >= BATCH.threshold - POLICY.colluders
            assert names(opened, BATCH.roster) == sorted(opened.members)
            assert opened.totals["g"].max() == 1


TestLyingServer = LyingServerMachine.TestCase
TestLyingServer.settings = settings(
    settings.default, max_examples=settings.default.max_examples // 4, stateful_step_count=25
)
