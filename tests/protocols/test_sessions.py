"""Both sides together: contexts decide the masks, and no secret is shown or left."""

import numpy as np
import pytest
from refusals import ME, PARAMS, bitmap
from secagg_helpers import ROUNDS, Run, fixed_entropy, make_inputs, make_params

from protocols import messages
from protocols.client.session import ClientSession
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
    BundleReport,
    MaskedInput,
    UnmaskShares,
)
from protocols.phases import Phase
from protocols.primitives.packing import unpack

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
