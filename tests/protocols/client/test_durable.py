"""Replay protection: one answer a request, also after a restart (SPEC 6.7)."""

import itertools

import msgspec
import numpy as np
import pytest
from malicious_run import BATCH, ME, PARAMS, M, Run, bitmap, party
from secagg_helpers import (
    fixed_entropy,
    make_inputs,
    make_params,
    plain_sum,
)

from protocols import messages
from protocols.client.durable import DurableClient
from protocols.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    SecAggError,
)
from protocols.messages import (
    ConsistencyProof,
    StepRequest,
    SurvivorSet,
)
from protocols.server.session import ServerSession


def restarted(reply, u: int = ME) -> DurableClient:
    return DurableClient(party(u), fixed_entropy(b"after restart"), reply.record)


def test_the_same_request_gets_the_same_bytes_also_after_a_restart():
    run = Run()
    client, x = run.clients[ME], make_inputs(PARAMS)
    requests = run.server.begin_step(run.task(0))
    first = client.masked_input(requests[ME], run.task(0), x[ME])
    again = client.masked_input(requests[ME], run.task(0), {"g": np.zeros(5, np.uint32)})
    assert again == first
    back = restarted(first)
    assert back.masked_input(requests[ME], run.task(0), x[10]).message == first.message
    run.clients[ME] = back
    survivors = run.collect(lambda u, c: c.masked_input(requests[u], run.task(0), x[u]), requests)
    signed = back.confirm(survivors[ME])
    run.clients[ME] = restarted(signed)
    assert run.clients[ME].confirm(survivors[ME]).message == signed.message
    proofs = run.signatures(survivors)
    last = run.clients[ME].unmask(proofs[ME])
    run.clients[ME] = restarted(last)
    assert run.clients[ME].unmask(proofs[ME]).message == last.message
    run.shares(proofs)
    totals = {k: v.tolist() for k, v in run.server.result.totals.items()}
    assert totals == plain_sum(x, PARAMS.roster, PARAMS)
    run.shares(run.signatures(run.inputs(1)))


def test_every_offline_stage_survives_a_restart():
    entropy = fixed_entropy()
    server = ServerSession(BATCH)
    clients = {u: DurableClient(party(u), entropy) for u in BATCH.roster}
    replies = dict.fromkeys(BATCH.roster, b"")
    for stage in ("advertise_keys", "share_keys", "open_bundles"):
        for u, client in clients.items():
            args = (replies[u],) if replies[u] else ()
            reply = getattr(client, stage)(*args)
            clients[u] = DurableClient(party(u), entropy, reply.record)
            assert getattr(clients[u], stage)(*args).message == reply.message
            if reply.message:
                server.receive(u, reply.message)
        if stage != "open_bundles":
            replies = server.end_round()


def test_another_request_is_refused_for_ever_and_disturbs_nothing():
    run = Run()
    survivors = run.inputs()
    client, x = run.clients[ME], make_inputs(PARAMS)[ME]
    smaller = messages.encode(StepRequest(0, bitmap(10, 13, 16, 19)))
    other = make_params(step=0, broadcast_digest=b"e" * 32).task
    for back in (client, restarted(client.masked_input(run.requests[ME], run.task(0), x))):
        for request, task in [(smaller, run.task(0)), (run.requests[ME], other)]:
            with pytest.raises(RemoteProtocolError, match="another request"):
                back.masked_input(request, task, x)
    signed = client.confirm(survivors[ME])
    lie = messages.encode(SurvivorSet(bitmap(10, 13, 16, 19)))
    for back in (client, restarted(signed)):
        with pytest.raises(RemoteProtocolError, match="another request"):
            back.confirm(lie)
    proofs = run.signatures(survivors)
    last = client.unmask(proofs[ME])
    proof = messages.decode(proofs[ME], ConsistencyProof, BATCH)
    subset = ConsistencyProof(bitmap(10, 13, 16, 19), proof.signatures[:4])
    for back in (client, restarted(last)):
        with pytest.raises(RemoteProtocolError, match="another request"):
            back.unmask(messages.encode(subset))
        with pytest.raises(LocalProtocolError):
            back.share_keys(b"anything")
        with pytest.raises(RemoteProtocolError, match="another request"):
            back.open_bundles(b"anything")
    run.shares(proofs)


def test_never_both_kinds_whatever_is_asked_and_whenever_it_restarts():
    """Every survivor set is tried on a client that keeps restarting from what it stored."""
    run = Run()
    survivors = run.inputs()
    x = make_inputs(PARAMS)[ME]
    stored = run.clients[ME].masked_input(run.requests[ME], run.task(0), x)
    given_out = set()
    for size in (5, 4):
        for members in itertools.combinations(PARAMS.roster, size):
            client = restarted(stored)
            try:
                stored = client.confirm(messages.encode(SurvivorSet(bitmap(*members))))
                given_out.add(stored.message)
            except SecAggError:
                continue
    assert len(given_out) == 1
    assert survivors


def test_records_of_others_and_damaged_ones_are_refused():
    run = Run()
    reply = run.clients[ME].open_bundles(run.deliveries[ME])
    with pytest.raises(LocalProtocolError, match="another client"):
        DurableClient(party(10), fixed_entropy(), reply.record)
    for damaged in (b"", reply.record[:-1], b"\xc0"):
        with pytest.raises(LocalProtocolError, match="damaged"):
            DurableClient(party(ME), fixed_entropy(), damaged)


def test_erased_secrets_are_gone_from_the_record():
    run = Run()
    unused = run.clients[ME]._session.state.unused
    seeds = [unused[key].seeds for key in range(M)]
    shares = [[h.self_mask.value for h in unused[key].held.values()] for key in range(M)]
    proofs = run.signatures(run.inputs())
    run.shares(proofs)
    last = run.clients[ME].unmask(proofs[ME])
    assert seeds[0].mask_key not in last.record
    assert seeds[1].mask_key in last.record
    assert shares[0][0] in last.record  # in the stored reply, until the next step
    run.inputs(1)
    record = run.clients[ME]._record()
    assert not any(share in record for share in shares[0])
    assert last.message not in record
    ended = run.clients[ME].end()
    assert not any(share in ended for share in shares[2])


def test_a_record_of_a_state_that_is_no_more_is_refused_in_one_line():
    """Earlier versions had a state `Unmasked`; a folder may still have it."""
    record = msgspec.msgpack.decode(Run().clients[ME].end())
    record["state"] = {**record["state"], "type": "Unmasked"}
    with pytest.raises(LocalProtocolError, match="of another version: its batch is lost"):
        DurableClient(party(ME), fixed_entropy(), msgspec.msgpack.encode(record))
