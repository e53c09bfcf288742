"""The one property that matters: the exact sum of exactly the survivors, or no sum."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from secagg_helpers import ROUNDS, Run, aggregations, make_inputs, make_params, plain_sum

from protocols.driver import DropSchedule, run_aggregation
from protocols.errors import LocalProtocolError, NotEnoughSurvivors
from protocols.phases import Phase


def survivors_by_phase(params, drops):
    alive = set(params.roster)
    for phase in ROUNDS:
        alive -= {u for u, when in drops.items() if when == phase}
        yield phase, set(alive)


@given(aggregations())
def test_exact_sum_of_the_survivors_or_no_sum(case):
    params, inputs, drops = case
    short = [
        (phase, len(alive))
        for phase, alive in survivors_by_phase(params, drops)
        if len(alive) < params.threshold
    ]
    if short:
        with pytest.raises(NotEnoughSurvivors) as caught:
            run_aggregation(inputs, params, drops=DropSchedule(drops))
        phase, alive = short[0]
        assert (caught.value.phase, caught.value.alive) == (phase, alive)
        assert caught.value.needed == params.threshold
        return
    result = run_aggregation(inputs, params, drops=DropSchedule(drops))
    late = {u for u in params.roster if drops.get(u) in {None, Phase.UNMASKING}}
    assert result.survivors == tuple(sorted(late))
    totals = {name: total.tolist() for name, total in result.totals.items()}
    assert totals == plain_sum(inputs, late, params)
    assert all(total.dtype == np.uint32 for total in result.totals.values())


@pytest.mark.parametrize("phase", list(ROUNDS))
def test_every_single_client_may_drop_in_every_round(phase):
    params = make_params(5, ("g", 33, 3), ("w", 2, 16))
    inputs = make_inputs(params)
    for u in params.roster:
        result = run_aggregation(inputs, params, drops=DropSchedule({u: phase}))
        survivors = set(params.roster) - ({u} if phase != Phase.UNMASKING else set())
        assert {k: v.tolist() for k, v in result.totals.items()} == plain_sum(
            inputs, survivors, params
        )


def test_widest_field_with_every_input_at_the_top():
    params = make_params(12, ("g", 9, 24), ("h", 7, 1))
    inputs = {
        u: {"g": np.full(9, 2**24 - 1, np.uint32), "h": np.ones(7, np.uint8)} for u in params.roster
    }
    result = run_aggregation(inputs, params, drops=DropSchedule({10: Phase.MASKED_INPUT}))
    assert result.totals["g"].tolist() == [11 * (2**24 - 1)] * 9
    assert result.totals["h"].tolist() == [11] * 7


def test_several_prg_blocks():
    params = make_params(3, ("g", 70_001, 9))
    inputs = make_inputs(params)
    result = run_aggregation(inputs, params)
    assert np.array_equal(result.totals["g"], sum(x["g"] for x in inputs.values()))


def test_inputs_of_clients_that_drop_early_may_be_missing():
    params = make_params(4)
    inputs = make_inputs(params)
    del inputs[10]
    result = run_aggregation(inputs, params, drops=DropSchedule({10: Phase.MASKED_INPUT}))
    assert 10 not in result.survivors
    with pytest.raises(LocalProtocolError, match="no input"):
        run_aggregation(inputs, params)


def test_tap_sees_every_byte_also_of_a_failing_aggregation():
    params = make_params(4)
    seen = []
    result = run_aggregation(
        make_inputs(params), params, tap=lambda p, d, u, b: seen.append((p, d, u, len(b)))
    )
    counted = [
        (phase, direction, u, size)
        for phase, directions in result.bytes.items()
        for direction, clients in directions.items()
        for u, size in clients.items()
    ]
    sizes = Counter()
    for *place, size in seen:
        sizes[tuple(place)] += size
    assert sizes == {tuple(place): size for *place, size in counted}
    assert len(seen) == 4 * 8
    seen.clear()
    drops = DropSchedule(dict.fromkeys(params.roster[:2], Phase.UNMASKING))
    with pytest.raises(NotEnoughSurvivors):
        run_aggregation(
            make_inputs(params), params, drops=drops, tap=lambda *message: seen.append(message)
        )
    assert len(seen) == 4 * 7 + 2


def test_fresh_entropy_gives_fresh_messages():
    params = make_params(3)
    seen: list[bytes] = []
    for _ in range(2):
        run_aggregation(
            make_inputs(params),
            params,
            tap=lambda p, d, u, b: seen.append(b) if (p, d) == (Phase.MASKED_INPUT, "up") else None,
        )
    assert len(set(seen)) == len(seen) == 6


def test_late_masked_input_is_discarded():
    params = make_params(4)
    run = Run(params, Phase.SHARE_KEYS)
    late = run.answer(10, Phase.MASKED_INPUT)
    run.replies.pop(10)  # as if it had not come in time
    run.round(Phase.MASKED_INPUT)
    assert run.server.receive(10, late) is False
    run.round(Phase.UNMASKING)
    expected = plain_sum(run.inputs, params.roster[1:], params)
    assert {k: v.tolist() for k, v in run.server.result.totals.items()} == expected


def test_server_holds_one_running_sum_and_no_client_vector():
    params = make_params(6, ("g", 1000, 4))
    run = Run(params, Phase.SHARE_KEYS)
    for u in params.roster:
        run.server.receive(u, run.answer(u, Phase.MASKED_INPUT))
        state = run.server._state
        assert [total.size for total in state.totals] == [1000]
        assert state.received == frozenset(params.roster[: params.roster.index(u) + 1])
