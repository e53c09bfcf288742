"""What a client refuses within a step, and the gate in front of its shares (SPEC 6.3, 6.4)."""

import pytest
from refusals import ME, PARAMS, bitmap, refused
from secagg_helpers import Run

from protocols import messages
from protocols.client.states import HeldShares, KeyShare, Masked, Party, SelfShare
from protocols.client.step import gate
from protocols.errors import (
    LocalProtocolError,
)
from protocols.messages import (
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.phases import Phase


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


def test_inputs_are_computed_when_nothing_can_refuse_the_step_any_more():
    """Whether a client answers must not depend on private data (SPEC 6.3)."""
    run, called = Run(PARAMS, Phase.SHARE_KEYS), []
    inputs = run.inputs[ME]
    run.inputs[ME] = lambda: called.append(ME) or inputs
    refused(run, Phase.MASKED_INPUT, StepRequest(1, bitmap(*PARAMS.roster)), "never made")
    assert not called
    run = Run(PARAMS, Phase.SHARE_KEYS)
    run.inputs[ME] = lambda: called.append(ME) or inputs
    run.begin()
    run.answer(ME, Phase.MASKED_INPUT)
    assert called == [ME]


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
