"""Reported faults that stay as tests: who is blamed, and what a sender can cost."""

import numpy as np
import pytest
from durable_run import DEALER, VICTIM, other
from durable_run import Run as Batch
from secagg_helpers import (
    Run,
    fixed_entropy,
    make_params,
    malicious_params,
    rounds_of,
    signing_keys,
)

from protocols import messages
from protocols.client import states as client_states
from protocols.client.session import ClientSession
from protocols.driver import BatchSession
from protocols.errors import (
    DecodeError,
    NotEnoughSurvivors,
    RemoteProtocolError,
)
from protocols.messages import BundleReport
from protocols.params import Section, Task
from protocols.phases import Phase
from protocols.policy import Policy
from protocols.primitives.keys import KeyPair, is_canonical
from protocols.server.session import ServerSession
from protocols.signing import Credentials

ROSTER = (10, 13, 16, 19, 22)


def task(step, digest=b"B"):
    section = Section(name="g", length=4, maximum=255, clip=1.0)
    return Task(step=step, kind="g", sections=(section,), broadcast_digest=digest * 32)


def inputs():
    return {u: {"g": np.full(4, u, np.uint32)} for u in ROSTER}


@pytest.mark.parametrize("malicious", [False, True])
def test_a_step_number_is_answered_once_in_a_session_not_once_a_batch(malicious):
    policy = Policy(min_clients=4, colluders=1)
    trust = Credentials(signing_keys(ROSTER), policy) if malicious else None
    session = BatchSession(bytes(32), ROSTER, 4, entropy=fixed_entropy(), credentials=trust)
    session.prepare(1)
    session.step(inputs(), task(5))
    session.prepare(1)
    with pytest.raises(RemoteProtocolError, match="step number does not grow"):
        session.step(inputs(), task(5, b"C"))
    session.prepare(1)
    assert session.step(inputs(), task(6)).survivors == ROSTER


def test_the_owner_says_what_was_answered_in_other_batches():
    params = make_params(5)
    run = Run(params, upto=Phase.SHARE_KEYS)
    run.begin()
    u = params.roster[0]
    session, step = run.clients[u], params.task.step
    own = {s.name: np.zeros(s.length, np.uint32) for s in params.task.sections}
    assert isinstance(session, ClientSession)
    with pytest.raises(RemoteProtocolError, match="step number does not grow"):
        session.masked_input(run.replies[u], params.task, own, above=step)


def test_a_dealer_whose_seed_is_not_that_of_its_key_is_named_whoever_else_lies(monkeypatch):
    run = Batch()
    proofs = run.upto_unmask(0, silent=[DEALER])
    # Its advertised key is another one than its shared and committed seed gives.
    advertised = run.server.keys.advertised
    key = KeyPair.from_private_bytes(b"\7" * 32).public
    own = advertised[DEALER]
    forged = messages.Advertisement(own.channel_key, (key, *own.mask_keys[1:]), own.commitment)
    monkeypatch.setitem(advertised, DEALER, forged)

    def change(message):
        shares = (other(message.key_shares[0]), *message.key_shares[1:])
        return messages.UnmaskShares(message.key, message.self_shares, shares)

    with pytest.raises(RemoteProtocolError) as error:
        run.unmask(proofs, {VICTIM: run.resigned(change)})
    assert error.value.peer == DEALER
    assert DEALER in run.server._barred  # not only absent, which it was anyway


def shared(n=7):
    params = make_params(n, threshold=4)
    run = Run(params)
    for phase in rounds_of(params)[:2]:
        run.round(phase)
    for u, delivery in run.replies.items():
        run.clients[u].open_bundles(delivery)
    return run


def test_a_report_puts_nobody_out():
    run = shared()
    first, *_, last = run.params.roster
    report = BundleReport(messages.encode_set([first], run.params.roster))
    run.server.receive(last, messages.encode(report))
    assert run.server.candidates == run.params.roster
    with pytest.raises((DecodeError, RemoteProtocolError)):
        run.server.receive(last, b"junk")
    assert run.server.candidates == run.params.roster[:-1]


def test_senders_outside_the_roster_are_refused_and_not_remembered():
    run = shared()
    for stranger in range(1000, 1100):
        with pytest.raises((DecodeError, RemoteProtocolError)):
            run.server.receive(stranger, b"junk")
    assert not any(u >= 1000 for u in run.server._barred)


def test_a_client_cannot_be_counted_twice_among_the_active():
    run = shared()
    with pytest.raises(NotEnoughSurvivors):
        run.server.begin_step(run.params.task, [run.params.roster[0]] * 5)


def in_disguise(public):
    """Another encoding of the same X25519 key: the highest bit is not read."""
    return public[:-1] + bytes([public[-1] | 0x80])


def test_a_key_has_one_encoding():
    key = KeyPair.from_private_bytes(b"\5" * 32)
    assert is_canonical(key.public)
    assert not is_canonical(in_disguise(key.public))
    assert not is_canonical(((1 << 255) - 19).to_bytes(32, "little"))
    assert key.agree(in_disguise(key.public)) == key.agree(key.public)


def test_a_key_in_disguise_is_refused_by_server_and_clients():
    params = malicious_params(5)
    keys = signing_keys(params.roster)
    entropy = fixed_entropy()
    policy = Policy()
    server = ServerSession(params.batch)
    clients = {
        u: ClientSession(params.batch, u, entropy, identity=keys[u], policy=policy)
        for u in params.roster
    }
    first, second, *rest = params.roster
    sent = {u: clients[u].advertise_keys() for u in params.roster}
    own = messages.decode(
        messages.decode(sent[second], messages.Signed, params.batch).body,
        messages.Advertisement,
        params.batch,
    )
    theirs = messages.decode(
        messages.decode(sent[first], messages.Signed, params.batch).body,
        messages.Advertisement,
        params.batch,
    )
    copied = messages.Advertisement(
        own.channel_key, tuple(map(in_disguise, theirs.mask_keys)), own.commitment
    )
    party = client_states.Party(params.batch, second, keys[second], policy)
    forged = party.wrap(party.off0, copied)
    server.receive(first, sent[first])
    with pytest.raises(RemoteProtocolError, match="keys repeat"):
        server.receive(second, forged)
    assert messages.keys_repeat([copied])
    assert rest
