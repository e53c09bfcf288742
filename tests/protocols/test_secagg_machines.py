"""Sessions that are misused or lied to: which error, from which check, and nothing afterwards."""

import msgspec
import numpy as np
import pytest
from secagg_helpers import ROUNDS, Run, fixed_entropy, make_inputs, make_params, plain_sum

from protocols import messages
from protocols.client import bundles as client_bundles
from protocols.client import states as client_states
from protocols.client.session import ClientSession
from protocols.client.states import HeldShares, KeyShare, Masked, Party, SelfShare
from protocols.client.step import gate
from protocols.driver import DropSchedule, run_aggregation
from protocols.errors import (
    ConfigError,
    CryptoError,
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    RemoteProtocolError,
    SecAggError,
)
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    BundleReport,
    KeyDirectory,
    MaskedInput,
    ShareBundles,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.phases import Phase
from protocols.primitives.packing import unpack
from protocols.seeds import commit_all
from protocols.server import offline as server_offline

PARAMS = make_params(5)  # clients 10, 13, 16, 19, 22; threshold 4
ME = 13
STEPS = list(ROUNDS)


def directory_of(run: Run) -> KeyDirectory:
    return messages.decode(run.replies[ME], KeyDirectory, run.params.batch, run.params.task)


def refused(run: Run, phase: Phase, message: messages.Message, match: str, peer=None) -> None:
    """The client refuses the message at the named check, and is dead afterwards."""
    if phase == Phase.MASKED_INPUT:
        run.begin()
    good = run.replies[ME]
    run.replies[ME] = messages.encode(message)
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        run.answer(ME, phase)
    assert (caught.value.peer, caught.value.phase) == (peer, phase)
    run.replies[ME] = good
    dead(run, phase)


def dead(run: Run, phase: Phase) -> None:
    """Even the right message gets no answer any more."""
    error, match = {
        Phase.ADVERTISE_KEYS: (LocalProtocolError, "Failed"),
        Phase.SHARE_KEYS: (LocalProtocolError, "Failed"),
        Phase.MASKED_INPUT: (RemoteProtocolError, "spent"),
        Phase.UNMASKING: (LocalProtocolError, "no step waits"),
    }[phase]
    with pytest.raises(error, match=match):
        run.answer(ME, phase)
    if phase == Phase.MASKED_INPUT:
        dead(run, Phase.UNMASKING)


def refused_delivery(run: Run, message: BundleDelivery, match: str) -> None:
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        run.clients[ME].open_bundles(messages.encode(message))
    assert (caught.value.peer, caught.value.phase) == (None, Phase.SHARE_KEYS)
    with pytest.raises(LocalProtocolError, match="Failed"):
        run.clients[ME].open_bundles(run.replies[ME])


# Order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [None, *STEPS])
@pytest.mark.parametrize("step", STEPS)
def test_a_client_step_out_of_order_gets_no_answer(done, step):
    run = Run(PARAMS, done)
    due = STEPS.index(done) + 1 if done else 0
    if STEPS.index(step) == due:
        return
    run.begun = True
    run.replies = dict.fromkeys(PARAMS.roster, b"")
    online = done in {Phase.MASKED_INPUT, Phase.UNMASKING}
    with pytest.raises((LocalProtocolError, DecodeError)):
        run.answer(ME, step)
    for later in STEPS:
        with pytest.raises((LocalProtocolError, DecodeError)):
            run.answer(ME, later)
    if step in {Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS} or not online:
        with pytest.raises(LocalProtocolError, match="Failed"):
            run.answer(ME, step)


@pytest.mark.parametrize("step", STEPS)
def test_a_repeated_client_step_gets_no_second_answer(step):
    run = Run(PARAMS, STEPS[STEPS.index(step) - 1] if step != STEPS[0] else None)
    run.answer(ME, step)
    with pytest.raises((LocalProtocolError, RemoteProtocolError)):
        run.answer(ME, step)
    dead(run, step)


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_client_fed_junk_stays_failed(step):
    run = Run(PARAMS, STEPS[STEPS.index(step) - 1])
    if step == Phase.MASKED_INPUT:
        run.begin()
    good = run.replies[ME]
    run.replies[ME] = b"junk"
    with pytest.raises(DecodeError):
        run.answer(ME, step)
    run.replies[ME] = good
    dead(run, step)


def test_a_client_outside_the_roster_is_refused():
    with pytest.raises(LocalProtocolError, match="roster"):
        ClientSession(PARAMS.batch, 11, fixed_entropy())


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"h": np.zeros(5, np.uint32)},
        {"g": np.zeros(5, np.uint32), "h": np.zeros(5, np.uint32)},
        {"g": np.zeros(4, np.uint32)},
        {"g": np.zeros((5, 1), np.uint32)},
        {"g": np.zeros(5, np.int64)},
        {"g": np.zeros(5, np.float32)},
        {"g": np.full(5, 16, np.uint32)},
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_any_secret_is_used(wrong):
    run = Run(PARAMS, Phase.SHARE_KEYS)
    run.inputs[ME] = wrong
    with pytest.raises(LocalProtocolError):
        run.answer(ME, Phase.MASKED_INPUT)
    run.inputs = make_inputs(PARAMS)
    dead(run, Phase.MASKED_INPUT)


# Key directory --------------------------------------------------------------------------------


def adverts(d: KeyDirectory) -> list[Advertisement]:
    return [messages.decode(data, Advertisement, PARAMS.batch) for data in d.advertisements]


def with_advert(d: KeyDirectory, index: int, advert: Advertisement) -> KeyDirectory:
    sent = list(d.advertisements)
    sent[index] = messages.encode(advert)
    return KeyDirectory(d.members, tuple(sent))


def without(d: KeyDirectory, *gone: int) -> KeyDirectory:
    keep = [i for i, u in enumerate(PARAMS.roster) if u not in gone]
    return KeyDirectory(
        messages.encode_set({PARAMS.roster[i] for i in keep}, PARAMS.roster),
        tuple(d.advertisements[i] for i in keep),
    )


def changed(index: int, **fields):
    """Advertisement `index` with some fields changed; a function gives a field from another's."""

    def change(d: KeyDirectory) -> KeyDirectory:
        values = {k: v(adverts(d)) if callable(v) else v for k, v in fields.items()}
        return with_advert(d, index, msgspec.structs.replace(adverts(d)[index], **values))

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: without(d, 10, 16), "fewer keys"),
        (lambda d: KeyDirectory(d.members, d.advertisements[:-1]), "numbers"),
        (changed(3, channel_key=lambda a: a[0].channel_key), "repeat"),
        (changed(3, channel_key=lambda a: a[3].mask_keys[0]), "repeat"),
        (changed(3, mask_keys=lambda a: a[2].mask_keys), "repeat"),
        (changed(3, mask_keys=()), "number of mask keys"),
        (lambda d: without(d, ME), "own keys"),
        (changed(1, channel_key=b"x" * 32), "own keys"),
        (changed(1, mask_keys=(b"x" * 32,)), "own keys"),
        (changed(1, commitment=b"x" * 32), "own keys"),
    ],
)
def test_bad_directories_are_refused(change, match):
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    refused(run, Phase.SHARE_KEYS, change(directory_of(run)), match)


@pytest.mark.parametrize("data", [b"", b"junk", bytes(500)])
def test_an_advertisement_that_does_not_decode_is_refused(data):
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    d = directory_of(run)
    bad = KeyDirectory(d.members, (data, *d.advertisements[1:]))
    run.replies[ME] = messages.encode(bad)
    with pytest.raises(DecodeError):
        run.answer(ME, Phase.SHARE_KEYS)
    dead(run, Phase.SHARE_KEYS)


def test_low_order_channel_key_is_refused_and_named():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    bad = changed(2, channel_key=bytes(32))(directory_of(run))
    refused(run, Phase.SHARE_KEYS, bad, "agreement", peer=16)


def test_low_order_mask_key_is_refused_and_named():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    run.begin()
    state = run.clients[ME]._state
    bad = {**state.mask_keys, 16: (bytes(32),)}
    run.clients[ME]._state = msgspec.structs.replace(state, mask_keys=bad)
    with pytest.raises(RemoteProtocolError, match="agreement") as caught:
        run.answer(ME, Phase.MASKED_INPUT)
    assert (caught.value.peer, caught.value.phase) == (16, Phase.MASKED_INPUT)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"channel_key": bytes(32)}, "low order"),
        ({"mask_keys": (b"\1" + bytes(31),)}, "low order"),
        ({"mask_keys": ()}, "number of mask keys"),
        ({"mask_keys": (b"a" * 32, b"b" * 32)}, "too long|number of mask keys"),
        ({"channel_key": b"c" * 32, "mask_keys": (b"c" * 32,)}, "repeat"),
    ],
)
def test_keys_that_would_stop_the_others_are_refused_by_the_server(fields, match):
    run = Run(PARAMS)
    for u in PARAMS.roster:
        data = run.answer(u, Phase.ADVERTISE_KEYS)
        if u == 16:
            advert = messages.decode(data, Advertisement, PARAMS.batch)
            data = messages.encode(msgspec.structs.replace(advert, **fields))
            with pytest.raises((RemoteProtocolError, DecodeError), match=match):
                run.server.receive(u, data)
        else:
            run.server.receive(u, data)
    run.replies = run.server.end_round()
    for phase in STEPS[1:]:
        run.round(phase)
    assert run.server.result.survivors == (10, 13, 19, 22)


def test_a_copied_key_bars_who_came_second():
    run = Run(PARAMS)
    run.server.receive(10, run.answer(10, Phase.ADVERTISE_KEYS))
    advert = messages.decode(run.answer(13, Phase.ADVERTISE_KEYS), Advertisement, PARAMS.batch)
    first = next(iter(run.server._state.received.values()))
    copy = msgspec.structs.replace(advert, mask_keys=first.mask_keys)
    with pytest.raises(RemoteProtocolError, match="repeat"):
        run.server.receive(13, messages.encode(copy))


# Bundles --------------------------------------------------------------------------------------


def delivery_of(run: Run) -> BundleDelivery:
    return messages.decode(run.replies[ME], BundleDelivery, run.params.batch, run.params.task)


def bitmap(*members: int) -> bytes:
    return messages.encode_set(members, PARAMS.roster)


@pytest.mark.parametrize(
    ("members", "count", "match"),
    [
        ((10, 13, 16), 2, "fewer sharers"),
        ((10, 16, 19, 22), 3, "own bundles"),
        ((10, 13, 16, 19, 22), 3, "numbers"),
        ((10, 13, 16, 19), 4, "numbers"),
    ],
)
def test_bad_deliveries_are_refused(members, count, match):
    run = Run(PARAMS, Phase.SHARE_KEYS)
    bundles = delivery_of(run).bundles[:count]
    refused_delivery(run, BundleDelivery(bitmap(*members), bundles), match)


def test_a_sharer_that_never_advertised_is_refused():
    run = Run(PARAMS)
    run.round(Phase.ADVERTISE_KEYS, silent=frozenset({22}))
    run.round(Phase.SHARE_KEYS)
    bundles = delivery_of(run).bundles
    message = BundleDelivery(bitmap(*PARAMS.roster), (*bundles, bundles[0]))
    refused_delivery(run, message, "advertised no keys")


def reported(run: Run, message: BundleDelivery) -> tuple[int, ...]:
    report = run.clients[ME].open_bundles(messages.encode(message))
    unopened = messages.decode(report, BundleReport, PARAMS.batch).unopened
    return messages.decode_set(unopened, PARAMS.roster)


def test_swapped_and_changed_bundles_name_the_sender():
    for swap in (True, False):
        run = Run(PARAMS, Phase.SHARE_KEYS)
        sharers, bundles = delivery_of(run).sharers, delivery_of(run).bundles
        first = bundles[1] if swap else bytes([bundles[0][0] ^ 1]) + bundles[0][1:]
        assert reported(run, BundleDelivery(sharers, (first, *bundles[1:]))) == (10,)


def test_a_bundle_of_another_recipient_does_not_open():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    theirs = messages.decode(run.replies[16], BundleDelivery, PARAMS.batch).bundles[0]
    mine = delivery_of(run)
    assert reported(run, BundleDelivery(mine.sharers, (theirs, *mine.bundles[1:]))) == (10,)


def test_a_bundle_of_another_batch_does_not_open():
    other = Run(make_params(5, step=8), Phase.SHARE_KEYS)  # same entropy, so the same channel keys
    run = Run(PARAMS, Phase.SHARE_KEYS)
    assert reported(run, delivery_of(other)) == (10, 16, 19, 22)


@pytest.mark.parametrize("plaintext", [b"\xff" * 64, bytes(32), bytes(63), bytes(65), bytes(96)])
def test_a_bundle_that_holds_anything_else_is_reported(monkeypatch, plaintext):
    run = Run(PARAMS, Phase.SHARE_KEYS)
    monkeypatch.setattr(client_bundles, "unseal", lambda *args: plaintext)
    assert reported(run, delivery_of(run)) == (10, 16, 19, 22)


def test_a_reported_client_is_left_out_and_the_rest_is_exact():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    for u in (13, 19):
        mine = messages.decode(run.replies[u], BundleDelivery, PARAMS.batch)
        run.replies[u] = messages.encode(
            BundleDelivery(mine.sharers, (bytes(80), *mine.bundles[1:]))
        )
    run.round(Phase.MASKED_INPUT)
    assert 10 not in run.server.candidates
    run.round(Phase.UNMASKING)
    assert run.server.result.survivors == (13, 16, 19, 22)
    totals = {k: v.tolist() for k, v in run.server.result.totals.items()}
    assert totals == plain_sum(run.inputs, (13, 16, 19, 22), PARAMS)


def test_who_accuses_everybody_leaves_alone():
    everybody = {u: frozenset(PARAMS.roster) - {u} for u in (16,)}
    assert server_offline.left_out(everybody) == {16}
    assert server_offline.left_out({}) == frozenset()
    assert server_offline.left_out({10: frozenset({13})}) == {10}
    assert server_offline.left_out({10: frozenset({13}), 16: frozenset({13})}) == {13}


def test_an_active_client_whose_bundle_did_not_open_is_refused():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    mine = delivery_of(run)
    run.replies[ME] = messages.encode(BundleDelivery(mine.sharers, (bytes(80), *mine.bundles[1:])))
    refused(run, Phase.MASKED_INPUT, StepRequest(0, bitmap(*PARAMS.roster)), "never opened")


@pytest.mark.parametrize(
    ("sender", "accused"), [(10, (10,)), (10, (22,)), (22, (10,))], ids=["self", "absent", "not in"]
)
def test_reports_that_make_no_sense_are_refused(sender, accused):
    run = Run(PARAMS)
    run.round(Phase.ADVERTISE_KEYS)
    run.round(Phase.SHARE_KEYS, silent=frozenset({22}))
    with pytest.raises(RemoteProtocolError):
        run.server.receive(sender, messages.encode(BundleReport(bitmap(*accused))))


# Step requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "active", "match"),
    [
        (1, PARAMS.roster, "spent or were never made"),
        (0, (10, 13, 16), "below the threshold"),
        (0, (10, 16, 19, 22), "own id"),
    ],
)
def test_bad_step_requests_are_refused(key, active, match):
    run = Run(PARAMS, Phase.SHARE_KEYS)
    refused(run, Phase.MASKED_INPUT, StepRequest(key, bitmap(*active)), match)


# The unmask gate -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("survivors", "match"),
    [
        ((10, 16, 19, 22), "left out"),
        ((10, 13, 16), "fewer survivors"),
        ((), "left out"),
    ],
)
def test_bad_survivor_sets_are_refused(survivors, match):
    run = Run(PARAMS, Phase.MASKED_INPUT)
    refused(run, Phase.UNMASKING, SurvivorSet(bitmap(*survivors)), match)


def test_a_survivor_outside_u2_is_refused():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    del run.replies[22]
    run.round(Phase.SHARE_KEYS)
    run.round(Phase.MASKED_INPUT)
    refused(run, Phase.UNMASKING, SurvivorSet(bitmap(*PARAMS.roster)), "not active")


def held_by(me: int, *peers: int) -> Masked:
    shares = {u: HeldShares(KeyShare(b"k" * 32), SelfShare(b"s" * 32)) for u in peers}
    return Masked(0, b"", shares)


def test_the_gate_gives_each_peer_exactly_one_kind():
    state = held_by(ME, *PARAMS.roster)
    answers = gate(Party(PARAMS.batch, ME), state, frozenset({10, 13, 19, 22}))
    assert list(answers) == list(PARAMS.roster)
    kinds = {u: type(share) for u, share in answers.items()}
    assert kinds == {**dict.fromkeys(PARAMS.roster, SelfShare), 16: KeyShare}
    everyone = gate(Party(PARAMS.batch, ME), state, frozenset(PARAMS.roster))
    assert all(isinstance(share, SelfShare) for share in everyone.values())


def test_shares_leave_once_only():
    run = Run(PARAMS, Phase.MASKED_INPUT)
    first = run.answer(ME, Phase.UNMASKING)
    assert len(messages.decode(first, UnmaskShares, PARAMS.batch, PARAMS.task).self_shares) == 5
    for other in (run.replies[ME], messages.encode(SurvivorSet(bitmap(10, 13, 16, 19)))):
        run.replies[ME] = other
        with pytest.raises(LocalProtocolError):
            run.answer(ME, Phase.UNMASKING)


# Server ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", STEPS)
def test_server_refuses_senders_outside_the_roster_repetitions_and_later_rounds(phase):
    before = STEPS[STEPS.index(phase) - 1] if phase != STEPS[0] else None
    run = Run(PARAMS, before)
    data = run.answer(ME, phase)
    with pytest.raises(RemoteProtocolError, match="not taking part") as caught:
        run.server.receive(11, data)
    assert (caught.value.peer, caught.value.phase) == (11, phase)
    assert run.server.receive(ME, data)
    with pytest.raises(RemoteProtocolError, match="second message"):
        run.server.receive(ME, data)
    with pytest.raises(RemoteProtocolError, match="barred"):
        run.server.receive(ME, data)
    if phase != Phase.UNMASKING:
        with pytest.raises(RemoteProtocolError, match="later round"):
            run.server.receive(16, messages.encode(UnmaskShares(0, (), ())))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: ShareBundles(m.commitments, (m.bundles[0][:-1], *m.bundles[1:])), "size"),
        (lambda m: ShareBundles(m.commitments[:1], m.bundles), "number of commitments"),
        (lambda m: ShareBundles(m.commitments[::-1], m.bundles), "not those advertised"),
    ],
)
def test_bundles_that_do_not_fit_are_refused(change, match):
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    message = messages.decode(run.answer(ME, Phase.SHARE_KEYS), ShareBundles, PARAMS.batch)
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        run.server.receive(ME, messages.encode(change(message)))
    assert caught.value.peer == ME


def test_a_barred_client_counts_as_silent_and_the_rest_is_exact():
    params = make_params(5, threshold=3)
    run = Run(params, Phase.SHARE_KEYS)
    for u in params.roster:
        good = run.answer(u, Phase.MASKED_INPUT)
        if u == 16:
            with pytest.raises(DecodeError):
                run.server.receive(u, good[:-1])
            with pytest.raises(RemoteProtocolError, match="barred"):
                run.server.receive(u, good)
        else:
            run.server.receive(u, good)
    run.replies = run.server.end_round()
    run.round(Phase.UNMASKING)
    survivors = [u for u in params.roster if u != 16]
    result = {k: v.tolist() for k, v in run.server.result.totals.items()}
    assert result == plain_sum(run.inputs, survivors, params)


@pytest.mark.parametrize("phase", STEPS)
def test_server_below_threshold_stays_failed(phase):
    before = STEPS[STEPS.index(phase) - 1] if phase != STEPS[0] else None
    run = Run(PARAMS, before)
    with pytest.raises(NotEnoughSurvivors) as caught:
        run.round(phase, silent=frozenset({10, 22}))
    assert (caught.value.phase, caught.value.alive, caught.value.needed) == (phase, 3, 4)
    with pytest.raises(LocalProtocolError):
        run.server.end_round()
    if phase in {Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS}:
        with pytest.raises(LocalProtocolError):
            run.server.receive(10, run.sent[ME])
    else:
        assert run.server.receive(13, run.sent[ME]) is False
    with pytest.raises(LocalProtocolError, match="no result"):
        _ = run.server.result


def test_server_finishes_once():
    run = Run(PARAMS, Phase.UNMASKING)
    assert run.replies == {}
    with pytest.raises(LocalProtocolError, match="no round"):
        run.server.end_round()
    with pytest.raises(LocalProtocolError, match="spent"):
        run.server.begin_step(run.task)
    assert run.server.receive(10, run.sent[10]) is False


def test_wrong_numbers_of_bundles_and_shares_are_refused():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    message = messages.decode(
        run.answer(ME, Phase.SHARE_KEYS), ShareBundles, PARAMS.batch, PARAMS.task
    )
    with pytest.raises(RemoteProtocolError, match="number of bundles"):
        run.server.receive(
            ME, messages.encode(ShareBundles(message.commitments, message.bundles[1:]))
        )
    for shares in (
        UnmaskShares(0, (bytes(32),) * 4, ()),
        UnmaskShares(0, (bytes(32),) * 4, (bytes(32),)),
    ):
        run = Run(PARAMS, Phase.MASKED_INPUT)
        with pytest.raises(RemoteProtocolError, match="number of shares"):
            run.server.receive(ME, messages.encode(shares))
    run = Run(PARAMS, Phase.MASKED_INPUT)
    with pytest.raises(DecodeError, match="field element"):
        run.server.receive(ME, messages.encode(UnmaskShares(0, (b"\xff" * 32,) * 5, ())))


def answered(run: Run, liars: dict[int, object]) -> None:
    """Round 3 with the shares of some clients changed."""
    for u in run.replies:
        data = run.answer(u, Phase.UNMASKING)
        if u in liars:
            message = messages.decode(data, UnmaskShares, run.batch)
            data = messages.encode(liars[u](message))
        run.server.receive(u, data)
    run.server.end_round()


def wrong_key_share(m: UnmaskShares) -> UnmaskShares:
    return UnmaskShares(m.key, m.self_shares, tuple(bytes(32) for _ in m.key_shares))


def wrong_self_shares(m: UnmaskShares) -> UnmaskShares:
    return UnmaskShares(m.key, (bytes(32), *m.self_shares[1:]), m.key_shares)


@pytest.mark.parametrize("lie", [wrong_key_share, wrong_self_shares])
def test_wrong_shares_are_named_and_the_sum_is_exact(lie):
    params = make_params(6, threshold=4)
    run = Run(params, Phase.SHARE_KEYS)
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    answered(run, {13: lie})
    result = run.server.result
    assert result.liars == {13}
    assert 13 not in run.server.candidates
    totals = {k: v.tolist() for k, v in result.totals.items()}
    assert totals == plain_sum(run.inputs, result.survivors, params)


def test_two_wrong_shares_of_seven_are_named():
    params = make_params(7, threshold=4)
    run = Run(params, Phase.MASKED_INPUT)
    answered(run, {10: wrong_self_shares, 19: wrong_self_shares})
    assert run.server.result.liars == {10, 19}
    assert (
        run.server.result.totals["g"].tolist() == plain_sum(run.inputs, params.roster, params)["g"]
    )


def test_too_many_wrong_shares_fail_the_step():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    with pytest.raises(RemoteProtocolError, match="committed seed") as caught:
        answered(run, {ME: wrong_key_share})
    assert caught.value.peer == 16
    with pytest.raises(LocalProtocolError):
        run.server.end_round()


def test_a_dealer_whose_commitment_is_another_seeds_is_named():
    params = make_params(6, threshold=4)
    run = Run(params)
    for u in params.roster:
        data = run.answer(u, Phase.ADVERTISE_KEYS)
        if u == 16:
            state = run.clients[u]._state
            advert = messages.decode(data, Advertisement, params.batch)
            other = client_states.OwnSeeds(bytes(32), state.seeds[0].self_mask)
            root = commit_all(client_bundles.commitments(run.clients[u]._party, [other]))
            data = messages.encode(msgspec.structs.replace(advert, commitment=root))
            run.clients[u]._state = msgspec.structs.replace(state, sent=data)
            leaves = client_bundles.commitments(run.clients[u]._party, [other])
        run.server.receive(u, data)
    run.replies = run.server.end_round()
    for u in params.roster:
        data = run.answer(u, Phase.SHARE_KEYS)
        if u == 16:
            bundles = messages.decode(data, ShareBundles, params.batch).bundles
            data = messages.encode(ShareBundles(leaves, bundles))
        run.server.receive(u, data)
    run.replies = run.server.end_round()
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    with pytest.raises(RemoteProtocolError, match="committed seed") as caught:
        run.round(Phase.UNMASKING)
    assert caught.value.peer == 16
    assert 16 not in run.server.candidates


# Contexts -------------------------------------------------------------------------------------


CHANGED = {
    "session": {"session": b"s" * 32},
    "step": {"step": 8},
    "kind": {"kind": "labels"},
    "broadcast": {"broadcast_digest": b"e" * 32},
    "threshold": {"threshold": 5},
}


@pytest.mark.parametrize("name", CHANGED)
def test_every_context_field_changes_the_masks(name):
    """Same entropy, same input: only the context differs, and no masked byte agrees by design."""
    one, other = (
        Run(make_params(5, ("g", 400, 4), **change), Phase.SHARE_KEYS)
        for change in ({}, CHANGED[name])
    )
    a, b = (
        messages.decode(
            run.answer(ME, Phase.MASKED_INPUT), MaskedInput, run.params.batch, run.params.task
        )
        for run in (one, other)
    )
    bits = np.unpackbits(np.frombuffer(a.sections[0], np.uint8)) ^ np.unpackbits(
        np.frombuffer(b.sections[0], np.uint8)
    )
    assert abs(bits.mean() - 0.5) < 0.06


@pytest.mark.parametrize("section", [("h", 400, 4), ("g", 400, 5)])
def test_section_name_and_width_change_the_masks(section):
    one, other = (Run(make_params(5, s), Phase.SHARE_KEYS) for s in (("g", 400, 4), section))
    other.inputs = {u: {section[0]: one.inputs[u]["g"]} for u in PARAMS.roster}
    a, b = (run.answer(ME, Phase.MASKED_INPUT) for run in (one, other))
    assert a[-200:] != b[-200:]


def test_sections_of_one_client_have_different_masks():
    params = make_params(5, ("g", 400, 4), ("h", 400, 4))
    run = Run(params, Phase.SHARE_KEYS)
    run.inputs = {u: {name: np.zeros(400, np.uint32) for name in ("g", "h")} for u in params.roster}
    message = messages.decode(
        run.answer(ME, Phase.MASKED_INPUT), MaskedInput, params.batch, params.task
    )
    assert message.sections[0] != message.sections[1]


def test_masks_under_different_broadcasts_do_not_cancel():
    params = make_params(5, ("g", 400, 4))
    victim = make_params(5, ("g", 400, 4), broadcast_digest=b"e" * 32)
    run = Run(params, Phase.UNMASKING, params_of={ME: victim})
    total = run.server.result.totals["g"]
    expected = sum(x["g"] for x in run.inputs.values())
    p = params.field(params.sections[0]).p
    counts = np.bincount(total, minlength=p)
    assert (total == expected).mean() < 0.1
    assert counts.max() < 400 * 0.1


@pytest.mark.parametrize(
    "change", [{"step": 8}, {"session": b"s" * 32}, {"threshold": 5}], ids=["step", "session", "t"]
)
def test_a_client_with_other_offline_parameters_is_refused_by_its_peers(change):
    run = Run(PARAMS, params_of={ME: make_params(5, **change)})
    run.round(Phase.ADVERTISE_KEYS)
    run.round(Phase.SHARE_KEYS)
    report = run.clients[10].open_bundles(run.replies[10])
    assert messages.decode(report, BundleReport, PARAMS.batch).unopened == bitmap(ME)


def test_one_masked_input_is_uniform_and_hides_which_input_was_sent():
    params = make_params(5, ("g", 20_000, 2))
    p = params.field(params.sections[0]).p
    assert p == 31
    for value in (0, 3):
        run = Run(params, Phase.SHARE_KEYS)
        run.inputs = {u: {"g": np.full(20_000, value, np.uint32)} for u in params.roster}
        data = messages.decode(
            run.answer(ME, Phase.MASKED_INPUT), MaskedInput, params.batch, params.task
        )
        counts = np.bincount(messages_unpacked(data, params), minlength=p)
        expected = 20_000 / p
        assert ((counts - expected) ** 2 / expected).sum() < 90  # chi-square, 30 degrees, 1e-7


def messages_unpacked(message, params):
    section = params.sections[0]
    return unpack(message.sections[0], params.field(section).bits, section.length)


# Secrets and errors ----------------------------------------------------------------------------


def test_no_repr_shows_a_secret():
    drawn: list[bytes] = []
    source = fixed_entropy()

    def entropy(size: int) -> bytes:
        drawn.append(source(size))
        return drawn[-1]

    run = Run(PARAMS)
    run.clients = {u: ClientSession(PARAMS.batch, u, entropy) for u in PARAMS.roster}
    seen = []
    for phase in ROUNDS:
        run.round(phase)
        for session in (run.server, *run.clients.values()):
            seen += [repr(session), repr(session._state)]
        if phase == Phase.MASKED_INPUT:
            held = run.clients[ME]._state.current.held
            drawn += [s.value for h in held.values() for s in (h.mask_key, h.self_mask)]
    seen.append(repr(UnmaskShares(0, (drawn[0],), (drawn[1],))))
    text = "".join(seen)
    assert len(drawn) > 20
    for secret in drawn:
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text
        assert str(int.from_bytes(secret, "big")) not in text


def test_finished_clients_hold_nothing():
    run = Run(PARAMS, Phase.UNMASKING)
    for client in run.clients.values():
        assert client._state.unused == {}
        assert client._state.current is None


def test_error_tree():
    for error in (DecodeError, LocalProtocolError, RemoteProtocolError, NotEnoughSurvivors):
        assert issubclass(error, SecAggError)
    assert issubclass(ConfigError, SecAggError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(CryptoError, SecAggError)
    assert str(NotEnoughSurvivors(Phase.UNMASKING, 2, 3)) == "unmasking: 2 clients left, 3 needed"
    assert "server" in str(RemoteProtocolError(None, Phase.UNMASKING, "x"))


def test_a_failing_aggregation_shows_no_sum():
    params = make_params(5)
    drops = DropSchedule(dict.fromkeys(params.roster[:2], Phase.UNMASKING))
    with pytest.raises(NotEnoughSurvivors) as caught:
        run_aggregation(make_inputs(params), params, drops=drops)
    assert vars(caught.value).keys() == {"phase", "alive", "needed", "around"}


def test_a_dealer_whose_seed_is_not_that_of_its_key_is_named():
    run = Run(PARAMS)
    for u in PARAMS.roster:
        data = run.answer(u, Phase.ADVERTISE_KEYS)
        if u == 16:
            session = run.clients[u]
            seeds = (client_states.OwnSeeds(bytes(32), session._state.seeds[0].self_mask),)
            root = commit_all(client_bundles.commitments(session._party, seeds))
            advert = messages.decode(data, Advertisement, PARAMS.batch)
            data = messages.encode(msgspec.structs.replace(advert, commitment=root))
            session._state = msgspec.structs.replace(session._state, sent=data, seeds=seeds)
        run.server.receive(u, data)
    run.replies = run.server.end_round()
    run.round(Phase.SHARE_KEYS)
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    with pytest.raises(RemoteProtocolError, match="advertised key") as caught:
        run.round(Phase.UNMASKING)
    assert caught.value.peer == 16
