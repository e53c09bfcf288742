"""A half-run aggregation, and messages that a client must refuse."""

import pytest
from secagg_helpers import ROUNDS, Run, make_params

from protocols import messages
from protocols.errors import (
    LocalProtocolError,
    RemoteProtocolError,
)
from protocols.phases import Phase

PARAMS = make_params(5)  # clients 10, 13, 16, 19, 22; threshold 4


ME = 13


STEPS = list(ROUNDS)


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


def bitmap(*members: int) -> bytes:
    return messages.encode_set(members, PARAMS.roster)
