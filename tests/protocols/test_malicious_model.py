"""The malicious model: signatures, the consistency round, shrinking cohorts (SPEC 1.6)."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from malicious_run import BATCH, FULL, ME, PARAMS, TRUST, Run, bitmap
from secagg_helpers import (
    fixed_entropy,
    make_inputs,
    make_params,
    malicious_params,
    plain_sum,
    signing_keys,
)

from protocols import messages
from protocols.client.session import ClientSession
from protocols.client.states import Party
from protocols.driver import BatchSession, DropSchedule, run_aggregation
from protocols.errors import (
    ConfigError,
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    RemoteProtocolError,
)
from protocols.messages import (
    Consistency,
    ConsistencyProof,
    KeyDirectory,
    Signed,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.phases import Phase, round_phases
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey
from protocols.server.session import ServerSession
from protocols.signing import Credentials

ROUNDS = round_phases("malicious")


@settings(max_examples=40)
@given(st.data())
def test_exact_sum_of_the_survivors_or_no_sum(data):
    n = data.draw(st.integers(3, 8))
    params = malicious_params(n, ("g", 9, 4), ("h", 2, 12))
    drops = data.draw(st.dictionaries(st.sampled_from(params.roster), st.sampled_from(ROUNDS)))
    inputs, trust = make_inputs(params), Credentials(signing_keys(params.roster))
    if n - len(drops) < params.threshold:
        with pytest.raises(NotEnoughSurvivors):
            run_aggregation(inputs, params, drops=DropSchedule(drops), credentials=trust)
        return
    result = run_aggregation(inputs, params, drops=DropSchedule(drops), credentials=trust)
    late = {Phase.CONSISTENCY, Phase.UNMASKING}
    survivors = [u for u in params.roster if u not in drops or drops[u] in late]
    assert result.survivors == tuple(survivors)
    assert {k: v.tolist() for k, v in result.totals.items()} == plain_sum(inputs, survivors, params)
    assert result.bytes[Phase.CONSISTENCY]["up"]


def test_a_batch_takes_a_round_more_per_step_and_cohorts_only_shrink():
    params = malicious_params(7)
    owner = BatchSession(
        params.session, params.roster, 5, credentials=Credentials(signing_keys(params.roster))
    )
    owner.prepare(3)
    inputs = make_inputs(params)
    left = list(params.roster)
    for step, gone in enumerate([10, 22]):
        drops = DropSchedule({gone: Phase.MASKED_INPUT})
        result = owner.step(inputs, make_params(7, step=step).task, drops)
        left.remove(gone)
        assert result.survivors == tuple(left)
    assert owner.needs_keys
    owner.prepare(1)
    assert owner.step(inputs, make_params(7, step=2).task).survivors == params.roster


def test_a_policy_may_allow_rejoining():
    owner = BatchSession(
        PARAMS.session, PARAMS.roster, 4, credentials=Credentials(TRUST.keys, Policy(rejoin=True))
    )
    owner.prepare(2)
    inputs = make_inputs(PARAMS)
    owner.step(inputs, make_params(5, step=0).task, DropSchedule({10: Phase.MASKED_INPUT}))
    assert owner.step(inputs, make_params(5, step=1).task).survivors == PARAMS.roster


def test_the_semi_honest_rounds_are_as_they_were():
    assert [str(phase) for phase in round_phases("semi-honest")] == [
        "advertise_keys", "share_keys", "masked_input", "unmasking",
    ]  # fmt: skip
    assert [str(phase) for phase in ROUNDS][3] == "consistency"


@pytest.mark.parametrize(
    "change",
    [
        {"identities": ()},
        {"identities": PARAMS.identities[:-1]},
        {"identities": (PARAMS.identities[0],) * 5},
        {"identities": (b"short", *PARAMS.identities[1:])},
        {"threat_model": "semi-honest"},
        {"threat_model": "other"},
    ],
)
def test_identities_are_validated(change):
    with pytest.raises(ConfigError):
        make_params(5, **{"threat_model": "malicious", "identities": PARAMS.identities, **change})


def test_a_client_needs_its_own_identity_and_a_policy():
    for identity, policy in [(None, Policy()), (TRUST.keys[10], Policy()), (TRUST.keys[ME], None)]:
        with pytest.raises(LocalProtocolError):
            Party(BATCH, ME, identity, policy)
    with pytest.raises(LocalProtocolError, match="no signing key"):
        Credentials({}).identities(PARAMS.roster)


def test_every_bit_flip_of_every_client_message_is_refused():
    seen = {}
    run_aggregation(
        make_inputs(PARAMS),
        PARAMS,
        entropy=fixed_entropy(),
        credentials=TRUST,
        drops=DropSchedule({22: Phase.MASKED_INPUT}),
        tap=lambda phase, direction, u, data: seen.setdefault((phase, direction, u), data),
    )
    before: dict[int, bytes] = {}
    server = ServerSession(PARAMS.batch)
    for phase in ROUNDS:
        data = seen[phase, "up", ME]
        for bit in range(0, 8 * len(data), 7):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises((DecodeError, RemoteProtocolError)):
                server.receive(ME, bytes(flipped))
            server._barred.clear()
        for u in PARAMS.roster:
            if (phase, "up", u) in seen:
                assert server.receive(u, seen[phase, "up", u])
        before = server.end_round()
        if phase == Phase.SHARE_KEYS:
            server.begin_step(PARAMS.task)
    assert before == {}
    assert server.result.survivors == (10, 13, 16, 19)


@pytest.mark.parametrize("field", ["session", "batch", "threshold"])
def test_an_advertisement_of_other_parameters_is_refused(field):
    value = {"session": b"s" * 32, "batch": 2, "threshold": 5}[field]
    batch = replace(BATCH, **{field: value})
    client = ClientSession(batch, ME, fixed_entropy(), identity=TRUST.keys[ME], policy=Policy())
    server = ServerSession(BATCH)
    with pytest.raises(RemoteProtocolError, match="signature"):
        server.receive(ME, client.advertise_keys())


def test_an_invented_or_replaced_advertisement_is_refused_by_the_client():
    entropy = fixed_entropy()
    clients = {
        u: ClientSession(BATCH, u, entropy, identity=TRUST.keys[u], policy=Policy())
        for u in BATCH.roster
    }
    sent = {u: c.advertise_keys() for u, c in clients.items()}
    forger = SigningKey.from_private_bytes(b"f" * 32)
    body = messages.decode(sent[16], Signed, BATCH).body
    fakes = {
        "forged": messages.encode(Signed(body, forger.sign(body))),
        "another client's": sent[19],
        "unsigned": body,
    }
    errors = (RemoteProtocolError, RemoteProtocolError, DecodeError)
    for fake, me, error in zip(fakes.values(), (10, 13, 22), errors, strict=True):
        listed = tuple(fake if u == 16 else sent[u] for u in BATCH.roster)
        with pytest.raises(error):
            clients[me].share_keys(messages.encode(KeyDirectory(FULL, listed)))


def test_two_survivor_sets_leave_no_share():
    """The server tells half of the clients that 22 dropped: neither half has t signatures."""
    run = Run()
    survivors = run.inputs()
    other = messages.encode(SurvivorSet(bitmap(10, 13, 16, 19)))
    told = {u: other if u in (10, 13) else survivors[u] for u in survivors}
    signed = {
        u: messages.decode(run.clients[u].confirm(told[u]).message, Signed, BATCH).signature
        for u in survivors
    }
    everyone = ConsistencyProof(FULL, tuple(signed.values()))
    groups = [(10, 13), (16, 19, 22)]
    for u in survivors:
        with pytest.raises(RemoteProtocolError):
            run.clients[u].unmask(messages.encode(everyone))
        for group in groups:
            few = ConsistencyProof(bitmap(*group), tuple(signed[v] for v in group))
            with pytest.raises((RemoteProtocolError, LocalProtocolError)):
                run.clients[u].unmask(messages.encode(few))


def proof_of(run: Run) -> tuple[dict[int, bytes], ConsistencyProof]:
    proofs = run.signatures(run.inputs())
    return proofs, messages.decode(proofs[ME], ConsistencyProof, BATCH)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: ConsistencyProof(p.signers, p.signatures[:-1]), "numbers of signers"),
        (lambda p: ConsistencyProof(bitmap(10, 13, 16), p.signatures[:3]), "fewer signatures"),
        (lambda p: ConsistencyProof(p.signers, p.signatures[::-1]), "signature is not valid"),
        (lambda p: ConsistencyProof(p.signers, (bytes(64), *p.signatures[1:])), "client 10"),
        (lambda p: ConsistencyProof(p.signers, (p.signatures[0],) * 5), "client 13"),
    ],
)
def test_bad_proofs_are_refused(change, match):
    run = Run()
    proofs, proof = proof_of(run)
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        run.clients[ME].unmask(messages.encode(change(proof)))
    assert (caught.value.peer, caught.value.phase) == (None, Phase.CONSISTENCY)
    with pytest.raises(LocalProtocolError):
        run.clients[ME].unmask(proofs[ME])


def test_a_signer_outside_u3_is_refused():
    run = Run()
    survivors = run.inputs(silent=(22,))
    proofs = run.signatures(survivors)
    proof = messages.decode(proofs[ME], ConsistencyProof, BATCH)
    bad = ConsistencyProof(FULL, (*proof.signatures, bytes(64)))
    with pytest.raises(RemoteProtocolError, match="no survivor"):
        run.clients[ME].unmask(messages.encode(bad))


def test_signatures_of_an_earlier_step_are_worth_nothing():
    run = Run()
    proofs, proof = proof_of(run)
    run.shares(proofs)
    run.signatures(run.inputs(1))
    with pytest.raises(RemoteProtocolError, match="not valid"):
        run.clients[ME].unmask(messages.encode(proof))


def test_no_share_leaves_without_the_consistency_round():
    run = Run()
    survivors = run.inputs()
    with pytest.raises(LocalProtocolError):
        run.clients[ME].unmask(survivors[ME])
    session = ClientSession(BATCH, 10, fixed_entropy(), identity=TRUST.keys[10], policy=Policy())
    session._state = run.clients[10]._session.state
    with pytest.raises(LocalProtocolError, match="no step waits"):
        session.unmask(survivors[10])
    with pytest.raises(LocalProtocolError):
        session.confirm(survivors[10])


@pytest.mark.parametrize(
    ("members", "match"),
    [((10, 16, 19, 22), "left out"), ((10, 13, 16), "fewer survivors")],
)
def test_bad_survivor_sets_are_not_signed(members, match):
    run = Run()
    run.inputs()
    with pytest.raises(RemoteProtocolError, match=match):
        run.clients[ME].confirm(messages.encode(SurvivorSet(bitmap(*members))))


def test_who_did_not_sign_is_not_asked_and_who_signed_wrongly_is_barred():
    run = Run()
    survivors = run.inputs()
    wrong = messages.encode(Signed(messages.encode(Consistency(0)), bytes(64)))
    with pytest.raises(RemoteProtocolError, match="signature") as caught:
        run.server.receive(22, wrong)
    assert (caught.value.peer, caught.value.phase) == (22, Phase.CONSISTENCY)
    del survivors[22]
    proofs = run.signatures(survivors)
    assert set(proofs) == {10, 13, 16, 19}
    run.shares(proofs)
    assert run.server.result.survivors == PARAMS.roster
    assert run.server.candidates == (10, 13, 16, 19)


def test_a_client_that_comes_back_is_refused():
    run = Run()
    survivors = run.inputs(silent=(22,))
    run.shares(run.signatures(survivors))
    request = messages.encode(StepRequest(1, FULL))
    with pytest.raises(RemoteProtocolError, match="missed the last step"):
        run.clients[ME].masked_input(request, run.task(1), make_inputs(PARAMS)[ME])


def test_step_numbers_must_grow():
    run = Run()
    run.shares(run.signatures(run.inputs(5)))
    for step in (5, 4):
        request = messages.encode(StepRequest(step - 3, FULL))
        with pytest.raises(RemoteProtocolError):
            run.clients[ME].masked_input(request, run.task(step), make_inputs(PARAMS)[ME])


def test_no_repr_shows_a_secret():
    run = Run()
    unused = run.clients[ME]._session.state.unused
    reply = run.clients[ME].open_bundles(run.deliveries[ME])
    text = repr(run.clients[ME]) + repr(reply) + repr(TRUST) + repr(run.clients[ME]._answers)
    assert repr(unused[0].seeds.mask_key)[2:-1] not in text
    assert repr(reply.record)[2:-1] not in text


def test_unmask_shares_are_signed_over_the_survivor_set():
    run = Run()
    proofs = run.signatures(run.inputs())
    run.shares(proofs)
    first = run.sent[ME]
    run.signatures(run.inputs(1))
    body = messages.decode(first, Signed, BATCH).body
    shares = messages.decode(body, UnmaskShares, BATCH)
    renamed = messages.encode(UnmaskShares(1, shares.self_shares, shares.key_shares))
    forged = Signed(renamed, messages.decode(first, Signed, BATCH).signature)
    with pytest.raises(RemoteProtocolError, match="signature"):
        run.server.receive(ME, messages.encode(forged))
