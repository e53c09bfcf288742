"""A client's calls: their order, no second answer, and inputs that do not fit."""

import numpy as np
import pytest
from refusals import ME, PARAMS, STEPS, dead
from secagg_helpers import Run, fixed_entropy, make_inputs

from protocols.client.session import ClientSession
from protocols.errors import (
    DecodeError,
    LocalProtocolError,
    RemoteProtocolError,
)
from protocols.phases import Phase


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
