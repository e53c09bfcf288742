"""The server: reports, barred clients, rounds below the threshold (SPEC 6.2, 6.5)."""

import pytest
from refusals import ME, PARAMS, STEPS, bitmap
from secagg_helpers import Run, make_params, plain_sum

from protocols import messages
from protocols.errors import (
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    RemoteProtocolError,
)
from protocols.messages import (
    BundleDelivery,
    BundleReport,
    UnmaskShares,
)
from protocols.phases import Phase
from protocols.server import offline as server_offline


def test_a_client_that_two_could_not_understand_stays_and_the_sum_is_exact():
    params = make_params(5, threshold=3)
    run = Run(params, Phase.SHARE_KEYS)
    for u in (13, 19):
        mine = messages.decode(run.replies[u], BundleDelivery, params.batch)
        run.replies[u] = messages.encode(
            BundleDelivery(mine.sharers, (bytes(80), *mine.bundles[1:]))
        )
    run.round(Phase.MASKED_INPUT)
    run.round(Phase.UNMASKING)
    assert run.server.result.survivors == params.roster
    totals = {k: v.tolist() for k, v in run.server.result.totals.items()}
    assert totals == plain_sum(run.inputs, params.roster, params)


def test_who_accuses_everybody_leaves_alone():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    report = messages.encode(BundleReport(bitmap(10, 13, 19, 22)))
    run.server.receive(16, report)
    assert run.server.candidates == (10, 13, 19, 22)


def test_pairs_have_the_smaller_client_first():
    reports = {16: frozenset({10, 22}), 10: frozenset({16})}
    assert server_offline.lost_pairs(reports) == {(10, 16), (16, 22)}
    assert server_offline.lost_pairs({}) == frozenset()


@pytest.mark.parametrize(
    ("sender", "accused"), [(10, (10,)), (10, (22,)), (22, (10,))], ids=["self", "absent", "not in"]
)
def test_reports_that_make_no_sense_are_refused(sender, accused):
    run = Run(PARAMS)
    run.round(Phase.ADVERTISE_KEYS)
    run.round(Phase.SHARE_KEYS, silent=frozenset({22}))
    with pytest.raises(RemoteProtocolError):
        run.server.receive(sender, messages.encode(BundleReport(bitmap(*accused))))


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
