"""What is outside a client's policy is refused before anything is drawn (SPEC 2.4)."""

import pytest
from malicious_run import BATCH, FULL, ME, PARAMS, TRUST, Run, bitmap, party
from secagg_helpers import (
    fixed_entropy,
    make_inputs,
    make_params,
)

from protocols import messages
from protocols.client.durable import DurableClient
from protocols.client.session import ClientSession
from protocols.errors import (
    PolicyError,
)
from protocols.messages import (
    KeyDirectory,
    StepRequest,
)
from protocols.params import Section
from protocols.policy import Policy


def no_entropy(size: int) -> bytes:
    raise AssertionError("nothing may be drawn")


@pytest.mark.parametrize(
    "bound", [{"min_clients": 6}, {"colluders": 3}, {"min_honest": 5}, {"max_steps": 2}]
)
def test_a_batch_outside_the_policy_is_refused_before_anything_is_drawn(bound):
    with pytest.raises(PolicyError):
        ClientSession(BATCH, ME, no_entropy, identity=TRUST.keys[ME], policy=Policy(**bound))
    with pytest.raises(PolicyError):
        DurableClient(party(ME, **bound), no_entropy)


def test_a_semi_honest_batch_is_refused_by_the_default_policy():
    with pytest.raises(PolicyError, match="malicious"):
        ClientSession(make_params(5).batch, ME, no_entropy, policy=Policy())
    ClientSession(make_params(5).batch, ME, no_entropy, policy=Policy(malicious=False))


@pytest.mark.parametrize(
    ("members", "colluders", "good"),
    [(5, 2, True), (5, 3, False), (7, 0, True), (7, 1, False), (8, 0, False), (2, 0, False)],
)
def test_the_threshold_must_fit_the_number_of_share_holders(members, colluders, good):
    policy = Policy(colluders=colluders)
    if good:
        policy.check_members(BATCH, members)
    else:
        with pytest.raises(PolicyError):
            policy.check_members(BATCH, members)


@pytest.mark.parametrize(
    "bound",
    [
        {"first_step": 8},
        {"kinds": frozenset({"labels"})},
        {"max_input": 14},
        {"max_length": 4},
        {"min_clip": 1.5},
        {"max_clip": 0.5},
    ],
)
def test_a_task_outside_the_policy_gets_no_answer(bound):
    task = make_params(5).task
    with pytest.raises(PolicyError):
        Policy(**bound).check_task(task)
    Policy().check_task(task)
    run = Run(**bound)
    with pytest.raises(PolicyError):
        run.clients[ME].masked_input(
            messages.encode(StepRequest(0, FULL)), task, make_inputs(PARAMS)[ME]
        )


def test_sections_within_the_policy_by_default():
    section = Section(name="g", length=5, maximum=15, clip=2.0**-21)
    with pytest.raises(PolicyError, match="clip"):
        Policy().check_task(make_params(5, sections=(section,)).task)


def test_too_many_share_holders_for_the_threshold_are_refused_when_they_are_known():
    """n_C = 3 leaves 2t = 8 for |U1| + n_C = 8: two survivor sets could both be signed."""
    entropy = fixed_entropy()
    policy = Policy(colluders=3, min_honest=1)
    clients = {
        u: ClientSession(BATCH, u, entropy, identity=TRUST.keys[u], policy=policy)
        for u in BATCH.roster
    }
    sent = tuple(client.advertise_keys() for client in clients.values())
    with pytest.raises(PolicyError, match="too low"):
        clients[ME].share_keys(messages.encode(KeyDirectory(FULL, sent)))
    fewer = messages.encode(KeyDirectory(bitmap(10, 13, 16, 19), sent[:4]))
    assert clients[10].share_keys(fewer)
