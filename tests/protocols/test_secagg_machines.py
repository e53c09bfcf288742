"""Sessions that are misused or lied to: which error, from which check, and nothing afterwards."""

import dataclasses

import numpy as np
import pytest
from secagg_helpers import Run, fixed_entropy, make_inputs, make_params, plain_sum

from protocols import client as client_module
from protocols import messages
from protocols.client import ClientSession, HeldShares, KeyShare, Masked, SelfShare, gate
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
    KeyDirectory,
    MaskedInput,
    ShareBundles,
    SurvivorSet,
    UnmaskShares,
)
from protocols.packing import unpack
from protocols.params import Phase

PARAMS = make_params(5)  # clients 10, 13, 16, 19, 22; threshold 4
ME = 13
STEPS = list(Phase)


def directory_of(run: Run) -> KeyDirectory:
    return messages.decode(run.replies[ME], KeyDirectory, run.params)


def refused(run: Run, phase: Phase, message: messages.Message, match: str, peer=None) -> None:
    """The client refuses the message at the named check, and is dead afterwards."""
    good = run.replies[ME]
    run.replies[ME] = messages.encode(message)
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        run.answer(ME, phase)
    assert (caught.value.peer, caught.value.phase) == (peer, phase)
    run.replies[ME] = good
    with pytest.raises(LocalProtocolError, match="Failed"):
        run.answer(ME, phase)


# Order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [None, *STEPS])
@pytest.mark.parametrize("step", STEPS)
def test_a_client_step_out_of_order_kills_the_session(done, step):
    run = Run(PARAMS, done)
    due = STEPS.index(done) + 1 if done else 0
    if STEPS.index(step) == due:
        return
    run.replies = run.replies or dict.fromkeys(PARAMS.roster, b"")
    with pytest.raises(LocalProtocolError):
        run.answer(ME, step)
    for later in STEPS:
        with pytest.raises(LocalProtocolError, match="Failed"):
            run.answer(ME, later)


@pytest.mark.parametrize("step", STEPS)
def test_a_repeated_client_step_kills_the_session(step):
    run = Run(PARAMS, STEPS[STEPS.index(step) - 1] if step != STEPS[0] else None)
    run.answer(ME, step)
    with pytest.raises(LocalProtocolError):
        run.answer(ME, step)
    with pytest.raises(LocalProtocolError, match="Failed"):
        run.answer(ME, step)


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_client_fed_junk_stays_failed(step):
    run = Run(PARAMS, STEPS[STEPS.index(step) - 1])
    good = run.replies[ME]
    run.replies[ME] = b"junk"
    with pytest.raises(DecodeError):
        run.answer(ME, step)
    run.replies[ME] = good
    with pytest.raises(LocalProtocolError, match="Failed"):
        run.answer(ME, step)


def test_a_client_outside_the_roster_is_refused():
    with pytest.raises(LocalProtocolError, match="roster"):
        ClientSession(PARAMS, 11, fixed_entropy())


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
    with pytest.raises(LocalProtocolError, match="Failed"):
        run.answer(ME, Phase.MASKED_INPUT)


# Key directory --------------------------------------------------------------------------------


def without(d: KeyDirectory, *gone: int) -> KeyDirectory:
    keep = [i for i, u in enumerate(PARAMS.roster) if u not in gone]
    return KeyDirectory(
        messages.encode_set({PARAMS.roster[i] for i in keep}, PARAMS.roster),
        tuple(d.channel_keys[i] for i in keep),
        tuple(d.mask_keys[i] for i in keep),
    )


def replaced(keys: tuple[bytes, ...], index: int, key: bytes) -> tuple[bytes, ...]:
    return (*keys[:index], key, *keys[index + 1 :])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: without(d, 10, 16), "fewer keys"),
        (lambda d: KeyDirectory(d.members, d.channel_keys[:-1], d.mask_keys[:-1]), "numbers"),
        (lambda d: KeyDirectory(d.members, d.channel_keys, d.mask_keys[:-1]), "numbers"),
        (
            lambda d: KeyDirectory(
                d.members, replaced(d.channel_keys, 3, d.channel_keys[0]), d.mask_keys
            ),
            "repeat",
        ),
        (
            lambda d: KeyDirectory(
                d.members, d.channel_keys, replaced(d.mask_keys, 3, d.channel_keys[3])
            ),
            "repeat",
        ),
        (lambda d: without(d, ME), "own keys"),
        (
            lambda d: KeyDirectory(d.members, replaced(d.channel_keys, 1, b"x" * 32), d.mask_keys),
            "own keys",
        ),
        (
            lambda d: KeyDirectory(d.members, d.channel_keys, replaced(d.mask_keys, 1, b"x" * 32)),
            "own keys",
        ),
    ],
)
def test_bad_directories_are_refused(change, match):
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    refused(run, Phase.SHARE_KEYS, change(directory_of(run)), match)


def test_low_order_channel_key_is_refused_and_named():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    d = directory_of(run)
    bad = KeyDirectory(d.members, replaced(d.channel_keys, 2, bytes(32)), d.mask_keys)
    refused(run, Phase.SHARE_KEYS, bad, "agreement", peer=16)


def test_low_order_mask_key_is_refused_and_named():
    run = Run(PARAMS)
    for u in PARAMS.roster:
        data = run.answer(u, Phase.ADVERTISE_KEYS)
        if u == 16:
            message = messages.decode(data, Advertisement, PARAMS)
            data = messages.encode(Advertisement(message.channel_key, bytes(32)))
        run.server.receive(u, data)
    run.replies = run.server.end_round()
    # 16 sees its own key changed and stops. Let it share all the same, with that key.
    state = run.clients[16]._state
    liar = dataclasses.replace(state.mask, public=bytes(32))
    run.clients[16]._state = dataclasses.replace(state, mask=liar)
    run.round(Phase.SHARE_KEYS)
    with pytest.raises(RemoteProtocolError, match="agreement") as caught:
        run.answer(ME, Phase.MASKED_INPUT)
    assert (caught.value.peer, caught.value.phase) == (16, Phase.MASKED_INPUT)


# Bundles --------------------------------------------------------------------------------------


def delivery_of(run: Run) -> BundleDelivery:
    return messages.decode(run.replies[ME], BundleDelivery, run.params)


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
    refused(run, Phase.MASKED_INPUT, BundleDelivery(bitmap(*members), bundles), match)


def test_a_sharer_that_never_advertised_is_refused():
    run = Run(PARAMS)
    run.round(Phase.ADVERTISE_KEYS, silent=frozenset({22}))
    run.round(Phase.SHARE_KEYS)
    bundles = delivery_of(run).bundles
    message = BundleDelivery(bitmap(*PARAMS.roster), (*bundles, bundles[0]))
    refused(run, Phase.MASKED_INPUT, message, "advertised no keys")


def test_swapped_and_changed_bundles_name_the_sender():
    for swap in (True, False):
        run = Run(PARAMS, Phase.SHARE_KEYS)
        sharers, bundles = delivery_of(run).sharers, delivery_of(run).bundles
        first = bundles[1] if swap else bytes([bundles[0][0] ^ 1]) + bundles[0][1:]
        message = BundleDelivery(sharers, (first, *bundles[1:]))
        refused(run, Phase.MASKED_INPUT, message, "does not open", peer=10)


def test_a_bundle_of_another_recipient_does_not_open():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    theirs = messages.decode(run.replies[16], BundleDelivery, PARAMS).bundles[0]
    mine = delivery_of(run)
    message = BundleDelivery(mine.sharers, (theirs, *mine.bundles[1:]))
    refused(run, Phase.MASKED_INPUT, message, "does not open", peer=10)


def test_a_bundle_of_another_aggregation_does_not_open():
    other = Run(make_params(5, step=8), Phase.SHARE_KEYS)  # same entropy, so the same channel keys
    run = Run(PARAMS, Phase.SHARE_KEYS)
    refused(run, Phase.MASKED_INPUT, delivery_of(other), "does not open", peer=10)


def test_a_bundle_with_a_non_element_is_refused(monkeypatch):
    run = Run(PARAMS, Phase.SHARE_KEYS)
    monkeypatch.setattr(client_module, "unseal", lambda *args: b"\xff" * 64)
    with pytest.raises(RemoteProtocolError, match="does not open"):
        run.answer(ME, Phase.MASKED_INPUT)


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
    refused(run, Phase.UNMASKING, SurvivorSet(bitmap(*PARAMS.roster)), "never shared")


def held_by(me: int, *peers: int) -> Masked:
    shares = {u: HeldShares(KeyShare(b"k" * 32), SelfShare(b"s" * 32)) for u in peers}
    return Masked(PARAMS, me, shares)


def test_the_gate_gives_each_peer_exactly_one_kind():
    state = held_by(ME, *PARAMS.roster)
    answers = gate(state, frozenset({10, 13, 19, 22}))
    assert list(answers) == list(PARAMS.roster)
    kinds = {u: type(share) for u, share in answers.items()}
    assert kinds == {**dict.fromkeys(PARAMS.roster, SelfShare), 16: KeyShare}
    everyone = gate(state, frozenset(PARAMS.roster))
    assert all(isinstance(share, SelfShare) for share in everyone.values())


def test_shares_leave_once_only():
    run = Run(PARAMS, Phase.MASKED_INPUT)
    first = run.answer(ME, Phase.UNMASKING)
    assert len(messages.decode(first, UnmaskShares, PARAMS).self_shares) == 5
    for other in (run.replies[ME], messages.encode(SurvivorSet(bitmap(10, 13, 16, 19)))):
        run.replies[ME] = other
        with pytest.raises(LocalProtocolError):
            run.answer(ME, Phase.UNMASKING)


# Server ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", STEPS)
def test_server_refuses_strangers_repetitions_and_later_rounds(phase):
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
            run.server.receive(16, messages.encode(UnmaskShares((), ())))


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
    for call in (run.server.end_round, lambda: run.server.receive(10, run.sent[ME])):
        with pytest.raises(LocalProtocolError):
            call()
    with pytest.raises(LocalProtocolError, match="no result"):
        _ = run.server.result


def test_server_finishes_once():
    run = Run(PARAMS, Phase.UNMASKING)
    assert run.replies == {}
    for call in (run.server.end_round, lambda: run.server.receive(10, b"")):
        with pytest.raises(LocalProtocolError, match="over"):
            call()


def test_wrong_numbers_of_bundles_and_shares_are_refused():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    message = messages.decode(run.answer(ME, Phase.SHARE_KEYS), ShareBundles, PARAMS)
    with pytest.raises(RemoteProtocolError, match="number of bundles"):
        run.server.receive(ME, messages.encode(ShareBundles(message.bundles[1:])))
    for shares in (
        UnmaskShares((bytes(32),) * 4, ()),
        UnmaskShares((bytes(32),) * 4, (bytes(32),)),
    ):
        run = Run(PARAMS, Phase.MASKED_INPUT)
        with pytest.raises(RemoteProtocolError, match="number of shares"):
            run.server.receive(ME, messages.encode(shares))
    run = Run(PARAMS, Phase.MASKED_INPUT)
    with pytest.raises(DecodeError, match="field element"):
        run.server.receive(ME, messages.encode(UnmaskShares((b"\xff" * 32,) * 5, ())))


def test_a_wrong_key_share_is_found_by_the_advertised_key():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    for u in run.replies:
        data = run.answer(u, Phase.UNMASKING)
        if u == ME:
            message = messages.decode(data, UnmaskShares, PARAMS)
            data = messages.encode(UnmaskShares(message.self_shares, (bytes(32),)))
        run.server.receive(u, data)
    with pytest.raises(RemoteProtocolError, match="do not rebuild") as caught:
        run.server.end_round()
    assert caught.value.peer == 16
    with pytest.raises(LocalProtocolError):
        run.server.end_round()


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
        messages.decode(run.answer(ME, Phase.MASKED_INPUT), MaskedInput, run.params)
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
    message = messages.decode(run.answer(ME, Phase.MASKED_INPUT), MaskedInput, params)
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
    with pytest.raises(RemoteProtocolError, match="does not open") as caught:
        run.answer(10, Phase.MASKED_INPUT)
    assert caught.value.peer == ME


def test_one_masked_input_is_uniform_and_hides_which_input_was_sent():
    params = make_params(5, ("g", 20_000, 2))
    p = params.field(params.sections[0]).p
    assert p == 31
    for value in (0, 3):
        run = Run(params, Phase.SHARE_KEYS)
        run.inputs = {u: {"g": np.full(20_000, value, np.uint32)} for u in params.roster}
        data = messages.decode(run.answer(ME, Phase.MASKED_INPUT), MaskedInput, params)
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
    run.clients = {u: ClientSession(PARAMS, u, entropy) for u in PARAMS.roster}
    seen = []
    for phase in Phase:
        run.round(phase)
        for session in (run.server, *run.clients.values()):
            seen += [repr(session), repr(session._state)]
        if phase == Phase.MASKED_INPUT:
            held = run.clients[ME]._state.held
            drawn += [s.value for h in held.values() for s in (h.mask_key, h.self_mask)]
    seen.append(repr(UnmaskShares((drawn[0],), (drawn[1],))))
    text = "".join(seen)
    assert len(drawn) > 50
    for secret in drawn:
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text
        assert str(int.from_bytes(secret, "big")) not in text


def test_finished_clients_hold_nothing():
    run = Run(PARAMS, Phase.UNMASKING)
    assert all(repr(c._state) == "Done()" for c in run.clients.values())


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
    assert vars(caught.value).keys() == {"phase", "alive", "needed"}
