"""Batches of key steps: exact sums, steps that know nothing of each other, erasure, retries."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_helpers import ROUNDS, fixed_entropy, make_inputs, make_params, plain_sum

from protocols import masking, messages
from protocols.client import bundles
from protocols.client.session import ClientSession
from protocols.context import offline, online
from protocols.driver import BatchSession, DropSchedule
from protocols.errors import (
    ConfigError,
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    RemoteProtocolError,
)
from protocols.messages import MaskedInput, StepRequest, SurvivorSet
from protocols.params import BatchParams
from protocols.phases import Phase
from protocols.primitives import prg
from protocols.primitives.packing import unpack
from protocols.server.session import ServerSession

M = 3
ME = 13


def totals_of(result) -> dict[str, list[int]]:
    return {name: total.tolist() for name, total in result.totals.items()}


def session(params, **changes) -> BatchSession:
    return BatchSession(params.session, params.roster, params.threshold, **changes)


class Batch:
    """Sessions of one batch after the offline exchange, stepped by hand."""

    def __init__(self, params=None, steps: int = M) -> None:
        self.params = params or make_params(5)
        batch = BatchParams(
            session=bytes(32),
            batch=1,
            steps=steps,
            roster=self.params.roster,
            threshold=self.params.threshold,
        )
        self.batch = batch
        self.server = ServerSession(batch)
        entropy = fixed_entropy()
        self.clients = {u: ClientSession(batch, u, entropy) for u in batch.roster}
        self.after_round_0 = self.collect(lambda u, c: c.advertise_keys(), batch.roster)
        self.states = {u: c._state for u, c in self.clients.items()}
        keys = self.after_round_0
        self.deliveries = self.collect(lambda u, c: c.share_keys(keys[u]), keys)
        self.shared = {u: c._state for u, c in self.clients.items()}
        for u, delivery in self.deliveries.items():
            assert self.clients[u].open_bundles(delivery) is None

    def task(self, step: int):
        return make_params(step=step, sections=self.params.sections).task

    def collect(self, answer, waiting) -> dict[int, bytes]:
        self.sent = {u: answer(u, self.clients[u]) for u in waiting}
        for u, data in self.sent.items():
            self.server.receive(u, data)
        return dict(self.server.end_round())

    def inputs(self, step: int) -> dict[int, bytes]:
        """Round 2; returns the survivor sets."""
        task, x = self.task(step), make_inputs(self.params, step)
        requests = self.server.begin_step(task)
        return self.collect(lambda u, c: c.masked_input(requests[u], task, x[u]), requests)

    def shares(self, survivors: dict[int, bytes]) -> None:
        self.collect(lambda u, c: c.unmask(survivors[u]), survivors)

    def stored(self, client: int = ME) -> bytes:
        return msgspec.msgpack.encode(self.clients[client]._state)


# Sums ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data())
def test_every_step_gives_the_exact_sum_or_none(data):
    n = data.draw(st.integers(3, 7))
    params = make_params(n, ("g", 7, 3), ("h", 2, 9))
    owner = session(params)
    owner.prepare(4)
    for step in range(4):
        inputs = make_inputs(params, step)
        dropping = data.draw(
            st.dictionaries(st.sampled_from(params.roster), st.sampled_from(ROUNDS))
        )
        task = make_params(n, step=step, sections=params.sections).task
        gone = {u for u, phase in dropping.items() if phase != Phase.UNMASKING}
        survivors = [u for u in params.roster if u not in gone]
        if n - len(dropping) < params.threshold:
            with pytest.raises(NotEnoughSurvivors):
                owner.step(inputs, task, DropSchedule(dropping))
            continue
        result = owner.step(inputs, task, DropSchedule(dropping))
        assert result.survivors == tuple(survivors)
        assert totals_of(result) == plain_sum(inputs, survivors, params)


def test_steps_may_have_sections_of_different_shapes():
    owner = session(make_params(4))
    owner.prepare(2)
    for step, sections in enumerate([[("g", 50, 2)], [("logits", 3, 20), ("w", 1, 4)]]):
        params = make_params(4, *sections, step=step)
        inputs = make_inputs(params)
        result = owner.step(inputs, params.task)
        assert totals_of(result) == plain_sum(inputs, params.roster, params)


def test_bytes_of_all_steps_are_all_bytes():
    params = make_params(4)
    seen = []
    owner = session(params, tap=lambda phase, direction, u, data: seen.append(len(data)))
    owner.prepare(2)
    counted = 0
    for step in range(2):
        result = owner.step(make_inputs(params), make_params(4, step=step).task)
        counted += sum(
            size
            for directions in result.bytes.values()
            for clients in directions.values()
            for size in clients.values()
        )
    assert counted == sum(seen)
    assert not result.bytes[Phase.SHARE_KEYS]["up"]


def test_a_failed_step_stays_failed_and_the_next_one_works():
    params = make_params(5)
    owner = session(params)
    owner.prepare(2)
    inputs = make_inputs(params)
    drops = DropSchedule(dict.fromkeys(params.roster[:2], Phase.MASKED_INPUT))
    with pytest.raises(NotEnoughSurvivors):
        owner.step(inputs, make_params(5, step=0).task, drops)
    with pytest.raises(LocalProtocolError, match="must grow"):
        owner.step(inputs, make_params(5, step=0).task)
    result = owner.step(inputs, make_params(5, step=1).task)
    assert totals_of(result) == plain_sum(inputs, params.roster, params)
    assert owner.needs_keys
    with pytest.raises(LocalProtocolError, match="spent"):
        owner.step(inputs, make_params(5, step=2).task)


# Preparing --------------------------------------------------------------------------------------


def test_the_offline_exchange_is_tried_again_until_everybody_shared():
    params = make_params(5)
    owner = session(params)
    assert owner.needs_keys
    with pytest.raises(LocalProtocolError, match="no keys"):
        owner.step({}, params.task)
    silent = [
        DropSchedule(dict.fromkeys(params.roster[:k], Phase.SHARE_KEYS)) for k in (2, 1, 0, 1)
    ]
    owner.prepare(2, iter(silent))
    assert owner.candidates == params.roster
    assert owner._rounds._batches == 3
    assert not owner.needs_keys


def test_the_best_attempt_is_kept_and_none_is_an_error():
    params = make_params(5)
    owner = session(params)
    one = DropSchedule({10: Phase.ADVERTISE_KEYS})
    two = DropSchedule({10: Phase.SHARE_KEYS, 13: Phase.ADVERTISE_KEYS})
    owner.prepare(2, [two, one, two])
    assert owner.candidates == params.roster[1:]
    assert owner.needs_keys  # four holders, threshold four: one more loss would stop it
    inputs = make_inputs(params)
    result = owner.step(inputs, params.task)
    assert totals_of(result) == plain_sum(inputs, params.roster[1:], params)
    with pytest.raises(NotEnoughSurvivors):
        owner.prepare(2, [two, two])
    with pytest.raises(LocalProtocolError, match="no attempt"):
        owner.prepare(2, [])


def test_a_new_batch_erases_the_old_one():
    params = make_params(3)
    owner = session(params)
    owner.prepare(2)
    (old,) = owner._clients.values()
    owner.prepare(2)
    assert {repr(client._state) for client in old.values()} == {"Ended()"}
    with pytest.raises(LocalProtocolError, match="Ended"):
        old[10].masked_input(b"", params.task, {})


@pytest.mark.parametrize("steps", [0, 1025])
def test_batch_size_is_validated(steps):
    with pytest.raises(ConfigError, match="steps"):
        session(make_params(3)).prepare(steps)


# Steps and what is left of them -----------------------------------------------------------------


def test_spent_keys_answer_nothing():
    run = Batch()
    first = {u: bytes(data) for u, data in run.server.begin_step(run.task(0)).items()}
    x = make_inputs(run.params)[ME]
    client = run.clients[ME]
    client.masked_input(first[ME], run.task(0), x)
    with pytest.raises(RemoteProtocolError, match="spent"):
        client.masked_input(first[ME], run.task(0), x)
    with pytest.raises(LocalProtocolError, match="no step waits"):
        client.unmask(messages.encode(SurvivorSet(b"\x1f")))
    full = messages.encode_set(run.params.roster, run.params.roster)
    assert client.masked_input(messages.encode(StepRequest(2, full)), run.task(9), x)
    for key in (0, 1, 2, 3):
        with pytest.raises(RemoteProtocolError, match="spent"):
            client.masked_input(messages.encode(StepRequest(key, full)), run.task(9), x)


def test_a_refused_request_costs_its_keys_and_no_others():
    run = Batch()
    full = messages.encode_set(run.params.roster, run.params.roster)
    x = make_inputs(run.params)[ME]
    client = run.clients[ME]
    with pytest.raises(DecodeError):
        client.masked_input(b"junk", run.task(0), x)
    with pytest.raises(RemoteProtocolError, match="spent"):
        client.masked_input(messages.encode(StepRequest(0, full)), run.task(0), x)
    with pytest.raises(LocalProtocolError, match="dtype"):
        client.masked_input(messages.encode(StepRequest(1, full)), run.task(1), {"g": np.zeros(5)})
    with pytest.raises(RemoteProtocolError, match="spent"):
        client.masked_input(messages.encode(StepRequest(1, full)), run.task(1), x)
    assert client.masked_input(messages.encode(StepRequest(2, full)), run.task(2), x)


def test_a_refused_survivor_set_costs_the_step_and_not_the_batch():
    run = Batch()
    survivors = run.inputs(0)
    with pytest.raises(RemoteProtocolError, match="left out"):
        run.clients[ME].unmask(messages.encode(SurvivorSet(b"\0")))
    with pytest.raises(LocalProtocolError, match="no step waits"):
        run.clients[ME].unmask(survivors[ME])
    del survivors[ME]
    run.shares(survivors)
    run.shares(run.inputs(1))
    assert run.server.result.survivors == run.params.roster


def test_messages_of_an_earlier_step_are_discarded_and_of_a_later_one_refused():
    run = Batch()
    survivors = run.inputs(0)
    old_inputs = run.sent
    run.shares(survivors)
    old_shares = run.sent
    run.server.begin_step(run.task(1))
    for data in (old_inputs[ME], old_shares[ME], run.deliveries[ME]):
        if data is run.deliveries[ME]:
            with pytest.raises(DecodeError):
                run.server.receive(ME, data)
        else:
            assert run.server.receive(ME, data) is False
    later = messages.encode(
        MaskedInput(
            2, messages.decode(old_inputs[10], MaskedInput, run.batch, run.task(0)).sections
        )
    )
    with pytest.raises(RemoteProtocolError, match="later round"):
        run.server.receive(10, later)


def test_an_active_set_may_be_smaller_than_u2():
    params = make_params(6, threshold=4)
    run = Batch(params)
    task, x = run.task(0), make_inputs(params)
    active = params.roster[1:]
    requests = run.server.begin_step(task, active)
    assert set(requests) == set(active)
    survivors = run.collect(lambda u, c: c.masked_input(requests[u], task, x[u]), active[:-1])
    run.shares(survivors)
    assert totals_of(run.server.result) == plain_sum(x, active[:-1], params)
    shares = messages.decode(run.sent[ME], messages.UnmaskShares, run.batch)
    assert (len(shares.self_shares), len(shares.key_shares)) == (4, 1)  # and none of client 10


@pytest.mark.parametrize("active", [(10, 13, 16), (10, 13, 16, 19, 99)])
def test_active_sets_that_cannot_work_are_refused(active):
    run = Batch()
    with pytest.raises((LocalProtocolError, NotEnoughSurvivors)):
        run.server.begin_step(run.task(0), active)
    assert run.server.keys_left == M
    run.shares(run.inputs(0))


def test_a_step_cannot_begin_within_another():
    run = Batch()
    run.server.begin_step(run.task(0))
    with pytest.raises(LocalProtocolError, match="after the one before"):
        run.server.begin_step(run.task(1))


# Erasure ----------------------------------------------------------------------------------------


def secrets_of(run: Batch, key: int) -> dict[str, list[bytes]]:
    """What ME holds for a step, by kind, read before anything of it was used."""
    held = run.clients[ME]._state.unused[key].held.values()
    own = run.clients[ME]._state.unused[key].seeds
    return {
        "seeds": [own.mask_key, own.self_mask],
        "shares": [s.value for h in held for s in (h.mask_key, h.self_mask)],
    }


def test_erased_secrets_are_gone_from_the_state():
    run = Batch()
    channel = run.states[ME].channel
    assert channel in msgspec.msgpack.encode(run.states[ME])
    assert channel not in msgspec.msgpack.encode(run.shared[ME])
    bundle_keys = list(run.shared[ME].inbound_keys.values())
    assert not any(key in run.stored() for key in bundle_keys)
    step = [secrets_of(run, key) for key in range(M)]

    def left(key: int, what: str) -> set[bool]:
        return {secret in run.stored() for secret in step[key][what]}

    assert all(left(key, what) == {True} for key in range(M) for what in ("seeds", "shares"))
    survivors = run.inputs(0)
    assert left(0, "seeds") == {False}
    assert left(0, "shares") == {True}
    run.shares(survivors)
    assert left(0, "shares") == {False}
    assert left(1, "seeds") == left(2, "shares") == {True}
    run.inputs(1)
    assert left(1, "shares") == {True}
    # Step 2 begins although step 1 was never unmasked: its shares go all the same.
    full = messages.encode_set(run.params.roster, run.params.roster)
    request = messages.encode(StepRequest(2, full))
    run.clients[ME].masked_input(request, run.task(2), make_inputs(run.params)[ME])
    assert left(1, "shares") == left(1, "seeds") == left(2, "seeds") == {False}
    run.clients[ME].end()
    assert run.stored() == b"\x81\xa4type\xa5Ended"


# Independence -----------------------------------------------------------------------------------


def chi_square(values: np.ndarray, p: int) -> float:
    expected = len(values) / p
    return float(((np.bincount(values, minlength=p) - expected) ** 2 / expected).sum())


def masked_vector(data: bytes, run: Batch, step: int) -> np.ndarray:
    task = run.task(step)
    message = messages.decode(data, MaskedInput, run.batch, task)
    return unpack(message.sections[0], 5, task.sections[0].length)


def mask_from(run: Batch, key: int, seeds_of: int) -> np.ndarray:
    """The whole mask of ME in step `key`, from the seeds that belong to step `seeds_of`."""
    task, off0 = run.task(key), offline(run.batch)
    full = messages.encode_set(run.params.roster, run.params.roster)
    on = online(run.clients[ME]._state.off1, key, task, run.batch.n, full)
    seeds = {u: run.states[u].seeds[seeds_of] for u in run.params.roster}
    total = masking.MaskedSum(task, run.batch.n, [np.zeros(task.sections[0].length, np.uint32)])
    total.add(masking.self_mask_key(seeds[ME].self_mask, ME, on), 1)
    own = masking.mask_key_pair(seeds[ME].mask_key, ME, seeds_of, off0)
    for peer in run.params.roster:
        if peer != ME:
            public = masking.mask_key_pair(seeds[peer].mask_key, peer, seeds_of, off0).public
            key_ = masking.pair_mask_key(own, ME, peer, public, on)
            total.add(key_, masking.pair_sign(ME, peer))
    return total.reduced()[0].astype(np.int64)


def test_all_secrets_of_one_step_say_nothing_of_another():
    """With every seed of step 0 known, what is sent in step 1 stays uniform, and y_1 - y_0 too."""
    params = make_params(5, ("g", 30_000, 2))
    p = params.field(params.sections[0]).p
    assert p == 31
    run = Batch(params, steps=2)
    sent = []
    for step in range(2):
        run.shares_of = run.inputs(step)
        sent.append(masked_vector(run.sent[ME], run, step).astype(np.int64))
        run.shares(run.shares_of)
    x = [make_inputs(params, step)[ME]["g"] for step in range(2)]
    assert np.array_equal((sent[0] - mask_from(run, 0, 0)) % p, x[0])  # the tester's algebra works
    assert np.array_equal((sent[1] - mask_from(run, 1, 1)) % p, x[1])
    for residue in (
        sent[1] - mask_from(run, 1, 0),
        sent[1] - mask_from(run, 0, 0),
        sent[1] - sent[0],
    ):
        assert chi_square(residue % p, p) < 90  # 30 degrees of freedom, 1e-7


def test_nothing_is_common_to_two_steps_or_used_twice(monkeypatch):
    sealed, expanded = [], []
    real_seal, real_add_masks = bundles.seal, prg.add_masks

    def seal(key, plaintext, associated):
        sealed.append((key, plaintext))
        return real_seal(key, plaintext, associated)

    def add_masks(total, masks, field):
        expanded[-1] += [key for key, _ in masks]
        real_add_masks(total, masks, field)

    monkeypatch.setattr(bundles, "seal", seal)
    monkeypatch.setattr(prg, "add_masks", add_masks)
    run = Batch(make_params(4))
    assert len({key for key, _ in sealed}) == len(sealed) == 4 * 3  # a key seals one bundle
    shares = [text[i : i + 32] for _, text in sealed for i in range(0, len(text), 32)]
    assert len(set(shares)) == len(shares) == 4 * 3 * 2 * M
    seeds = [
        s for u in run.states.values() for own in u.seeds for s in (own.mask_key, own.self_mask)
    ]
    publics = [key for keys in run.shared[ME].mask_keys.values() for key in keys]
    assert len(set(seeds)) == len(seeds) == 4 * 2 * M
    assert len(set(publics)) == len(publics) == 3 * M
    sent = []
    for step in range(M):
        expanded.append([])
        survivors = run.inputs(step)
        sent += run.sent.values()
        run.shares(survivors)
        sent += run.sent.values()
    assert len(set(sent)) == len(sent)
    used = [set(keys) for keys in expanded]
    assert all(len(keys) == 4 + 6 for keys in used)  # a self mask each, a pair mask for two
    assert len(set().union(*used)) == sum(map(len, used))


def test_only_those_that_held_keys_take_part_in_the_exchange_that_replaces_them():
    sent = []
    session = BatchSession(
        bytes(32), tuple(range(6)), 4, tap=lambda phase, way, client, _: sent.append((way, client))
    )
    session.replace(3, (0, 1, 3, 5))
    assert session.candidates == (0, 1, 3, 5)
    assert session.keys_left == 3
    assert {client for _, client in sent} == {0, 1, 3, 5}
    session.replace(2, (1, 2, 3, 4), ahead=True)
    assert session.candidates == (0, 1, 3, 5)
    session.prepare(2, ())
    assert session.candidates == (1, 2, 3, 4)
