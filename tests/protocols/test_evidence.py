"""Who is to blame for a wrong share: who answered with it, or who dealt it (D28 to D30)."""

import pytest
from evidence_run import BATCH, DEALER, KEYS, PARAMS, VICTIM, Run, dealing_wrong, other
from hypothesis import given
from hypothesis import strategies as st
from secagg_helpers import (
    fixed_entropy,
    make_inputs,
    make_params,
    plain_sum,
)

from protocols import evidence, messages
from protocols.client import offline as client_offline
from protocols.client.durable import DurableClient
from protocols.client.states import Party
from protocols.driver import BatchSession
from protocols.errors import CryptoError, DecodeError, LocalProtocolError, RemoteProtocolError
from protocols.messages import EvidenceRequest, ShareEvidence, UnmaskShares
from protocols.phases import Phase
from protocols.policy import Policy
from protocols.server.session import ServerSession
from protocols.signing import Credentials


def bitmap(*members):
    return messages.encode_set(members, PARAMS.roster)


def with_self_share(position):
    def change(message):
        shares = list(message.self_shares)
        shares[position] = other(shares[position])
        return UnmaskShares(message.key, tuple(shares), message.key_shares)

    return change


def test_a_dealer_cannot_have_its_victim_barred(monkeypatch):
    run = Run(monkeypatch, [VICTIM])
    assert run.unmask(run.upto_unmask(0)) == run.expected(0)
    assert run.server.result.liars == {VICTIM}
    requests = run.server.evidence_requests()
    assert set(requests) == {VICTIM}
    run.answer_for(requests)
    assert run.server.end_evidence() == {DEALER}
    assert DEALER not in run.server.candidates
    assert VICTIM in run.server.candidates
    assert run.unmask(run.upto_unmask(1)) == run.expected(1)


def test_a_wrong_mask_key_share_of_a_dropped_dealer_is_the_dealers_too(monkeypatch):
    run = Run(monkeypatch, [VICTIM], kind="mask_key")
    assert run.unmask(run.upto_unmask(0, silent=[DEALER])) == run.expected(0)
    run.answer_for(run.server.evidence_requests())
    assert run.server.end_evidence() == {DEALER}


def test_who_changes_a_share_is_named_itself():
    run = Run()
    proofs = run.upto_unmask(0)
    assert run.unmask(proofs, {VICTIM: run.resigned(with_self_share(1))}) == run.expected(0)
    run.answer_for(run.server.evidence_requests())
    assert run.server.end_evidence() == {VICTIM}
    assert DEALER in run.server.candidates


@pytest.mark.parametrize("answers", ["nothing", "another path", "another signature", "too few"])
def test_who_cannot_prove_its_share_is_named(monkeypatch, answers):
    run = Run(monkeypatch, [VICTIM])
    run.unmask(run.upto_unmask(0))
    (request,) = run.server.evidence_requests().values()
    if answers != "nothing":
        state = run.clients[VICTIM]._session.state
        bound = state.current.bound
        sent = run.clients[VICTIM].evidence(request).message
        body = messages.decode(sent, messages.Signed, BATCH).body
        honest = messages.decode(body, ShareEvidence, BATCH)
        stranger = state.dealt[16]
        forged = {
            "another path": ShareEvidence(
                0, honest.signatures, (evidence.path(state.dealt[DEALER].leaves, 3),)
            ),
            "another signature": ShareEvidence(0, (stranger.signature,), honest.paths),
            "too few": ShareEvidence(0, (), ()),
        }[answers]
        run.server.receive(VICTIM, run.parties[VICTIM].wrap(bound, forged))
    assert run.server.end_evidence() == {VICTIM}


def test_a_dealer_whose_shares_lie_on_no_polynomial_of_its_seed_loses_the_step_and_is_named(
    monkeypatch,
):
    run = Run(monkeypatch, [10, 16, 19, 22])
    proofs = run.upto_unmask(0)
    with pytest.raises(RemoteProtocolError, match=f"client {DEALER}") as caught:
        run.unmask(proofs)
    assert caught.value.peer == DEALER
    requests = run.server.evidence_requests()
    assert set(requests) == set(PARAMS.roster)
    run.answer_for(requests)
    assert run.server.end_evidence() == {DEALER}
    assert run.unmask(run.upto_unmask(1)) == run.expected(1)
    assert DEALER not in run.survivors


def test_too_many_liars_lose_the_step_and_are_named_and_the_dealer_is_not():
    run = Run()
    proofs = run.upto_unmask(0)
    liars = {10, 16, 19}
    with pytest.raises(RemoteProtocolError):
        run.unmask(proofs, {u: run.resigned(with_self_share(1)) for u in liars})
    run.answer_for(run.server.evidence_requests())
    assert run.server.end_evidence() == liars


def test_the_next_step_closes_an_inquiry_and_silence_proves_nothing(monkeypatch):
    run = Run(monkeypatch, [VICTIM])
    run.unmask(run.upto_unmask(0))
    assert run.server.evidence_requests()
    run.server.begin_step(make_params(step=1).task)
    assert VICTIM not in run.server.candidates
    assert run.server.evidence_requests() == {}


def test_a_bundle_that_its_dealer_did_not_sign_is_reported(monkeypatch):
    server, entropy = ServerSession(BATCH), fixed_entropy()
    clients = {
        u: DurableClient(Party(BATCH, u, KEYS[u], Policy(colluders=2)), entropy)
        for u in BATCH.roster
    }
    for u in BATCH.roster:
        server.receive(u, clients[u].advertise_keys().message)
    keys = server.end_round()
    original = evidence.statement
    for u in keys:
        with monkeypatch.context() as patch:
            if u == DEALER:  # signs for somebody else
                patch.setattr(
                    evidence, "statement", lambda off1, d, r, root: original(off1, d, 1, root)
                )
            server.receive(u, clients[u].share_keys(keys[u]).message)
    for u, delivery in server.end_round().items():
        report = clients[u].open_bundles(delivery).message
        assert bool(report) == (u != DEALER)
        if report:
            server.receive(u, report)
    assert DEALER not in server.candidates
    assert len(server.candidates) == 6


def test_evidence_is_given_for_what_left_and_for_nothing_else():
    run = Run()
    proofs = run.upto_unmask(0, silent=[28])
    requests = {
        "not unmasked yet": EvidenceRequest(0, bitmap(16), bitmap()),
        "another step": EvidenceRequest(1, bitmap(16), bitmap()),
        "the other kind": EvidenceRequest(0, bitmap(), bitmap(16)),
        "the other kind of a dropped client": EvidenceRequest(0, bitmap(28), bitmap()),
        "both kinds": EvidenceRequest(0, bitmap(16), bitmap(16, 28)),
    }
    with pytest.raises(LocalProtocolError):
        run.clients[10].evidence(messages.encode(requests.pop("not unmasked yet")))
    run.unmask(proofs)
    for client, request in zip(run.clients.values(), requests.values(), strict=False):
        with pytest.raises(RemoteProtocolError):
            client.evidence(messages.encode(request))
        with pytest.raises(LocalProtocolError):
            client.evidence(messages.encode(EvidenceRequest(0, bitmap(16), bitmap())))
    good = messages.encode(EvidenceRequest(0, bitmap(16, 19), bitmap(28)))
    sent = run.clients[25].evidence(good)
    body = messages.decode(sent.message, messages.Signed, BATCH).body
    assert len(messages.decode(body, ShareEvidence, BATCH).signatures) == 3
    assert run.clients[25].evidence(good).message == sent.message
    with pytest.raises(RemoteProtocolError, match="another request"):
        run.clients[25].evidence(messages.encode(EvidenceRequest(0, bitmap(16), bitmap())))


def test_evidence_survives_a_restart_and_holds_no_share(monkeypatch):
    run = Run(monkeypatch, [VICTIM])
    run.unmask(run.upto_unmask(0))
    request = run.server.evidence_requests()[VICTIM]
    back = DurableClient(run.parties[VICTIM], run.entropy, run.records[VICTIM])
    reply = back.evidence(request)
    again = DurableClient(run.parties[VICTIM], run.entropy, reply.record)
    assert again.evidence(request).message == reply.message
    run.server.receive(VICTIM, reply.message)
    assert run.server.end_evidence() == {DEALER}
    for keys in back.state.unused.values():
        for held in keys.held.values():
            assert held.self_mask.value not in reply.message
            assert held.mask_key.value not in reply.message


@pytest.mark.parametrize("wrong", ["not asked", "twice", "unsigned", "of another step"])
def test_evidence_that_was_not_asked_for_is_refused(monkeypatch, wrong):
    run = Run(monkeypatch, [VICTIM])
    run.unmask(run.upto_unmask(0))
    request = run.server.evidence_requests()[VICTIM]
    if wrong == "not asked":
        reply = run.clients[16].evidence(messages.encode(EvidenceRequest(0, bitmap(19), bitmap())))
        with pytest.raises(RemoteProtocolError, match="not taking part"):
            run.server.receive(16, reply.message)
        return
    sent = run.clients[VICTIM].evidence(request).message
    if wrong == "twice":
        run.server.receive(VICTIM, sent)
        with pytest.raises(RemoteProtocolError, match="second message"):
            run.server.receive(VICTIM, sent)
    elif wrong == "unsigned":
        with pytest.raises(DecodeError):
            run.server.receive(VICTIM, messages.decode(sent, messages.Signed, BATCH).body)
    else:
        renamed = ShareEvidence(1, (), ())
        bound = run.clients[16]._session.state.current.bound
        with pytest.raises(RemoteProtocolError, match="later round"):
            run.server.receive(VICTIM, run.parties[VICTIM].wrap(bound, renamed))


def test_the_driver_asks_by_itself(monkeypatch):
    credentials = Credentials(KEYS, Policy(colluders=2))
    owner = BatchSession(
        PARAMS.session,
        PARAMS.roster,
        PARAMS.threshold,
        entropy=fixed_entropy(),
        credentials=credentials,
    )
    with monkeypatch.context() as patch:
        honest = client_offline.split_seeds
        dealing_wrong(patch, [VICTIM])
        wrong = client_offline.split_seeds

        def split(party, seeds, members):
            return (wrong if party.client == DEALER else honest)(party, seeds, members)

        patch.setattr(client_offline, "split_seeds", split)
        owner.prepare(1)
    inputs = make_inputs(PARAMS)
    trips = owner.round_trips
    result = owner.step(inputs, PARAMS.task)
    assert {k: v.tolist() for k, v in result.totals.items()} == plain_sum(
        inputs, PARAMS.roster, PARAMS
    )
    assert owner.round_trips - trips == 1 + 3 + 1  # bundles, the step, evidence
    assert result.bytes[Phase.UNMASKING]["up"][VICTIM] > result.bytes[Phase.UNMASKING]["up"][16]
    assert DEALER not in owner.candidates
    assert VICTIM in owner.candidates


@given(st.integers(1, 40), st.data())
def test_every_leaf_has_a_path_to_the_root_and_no_other(count, data):
    leaves = evidence.leaves(bytes([i]) * 32 for i in range(count))
    root, index = evidence.root(leaves), data.draw(st.integers(0, count - 1))
    siblings = evidence.path(leaves, index)
    assert evidence.root_of_path(leaves[index], index, count, siblings) == root
    another = data.draw(st.integers(0, count - 1).filter(lambda i: i != index or count == 1))
    if count > 1:
        for wrong in (leaves[another], bytes(32)):
            try:
                assert evidence.root_of_path(wrong, index, count, siblings) != root
            except CryptoError:
                continue
        for path in (siblings[:-1], (*siblings, bytes(32))):
            with pytest.raises(CryptoError):
                evidence.root_of_path(leaves[index], index, count, path)
