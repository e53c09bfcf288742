"""What the benchmarks measure is a whole and right aggregation, with every byte of it."""

import statistics

import numpy as np

from benchmarks.masking import ring
from benchmarks.masking.one_sum import MAX_WEIGHT, MAXIMUM, Case, ours, ours_malicious
from protocols.driver import DropSchedule, run_aggregation
from protocols.phases import Phase


def test_both_models_give_the_weighted_mean_and_the_malicious_one_costs_more_bytes():
    case = Case(5, 300, dropouts=1)
    plain, signed = ours(case), ours_malicious(case)
    for figures in (plain, signed):
        # Rounding is below one level of what a weight scales, over a total weight above 4 * 50.
        assert figures.error < 4 * 2 / MAXIMUM * MAX_WEIGHT / (4 * 50)
        assert min(figures.client_cpu, figures.server_cpu) > 0
    assert signed.upload > plain.upload
    assert signed.download > plain.download


def test_a_run_on_the_ring_counts_what_the_driver_counts():
    case = ring.RingCase(50, 200)
    measured = ring.run(case)
    params = case.params
    inputs = {u: {"x": np.zeros(case.length, dtype=np.uint32)} for u in case.ids}
    silent = DropSchedule(dict.fromkeys(case.silent, Phase.MASKED_INPUT))
    result = run_aggregation(inputs, params, drops=silent)
    for direction, figure in (("up", measured.upload), ("down", measured.download)):
        sizes = [phase[direction] for phase in result.bytes.values()]
        assert figure == statistics.mean(
            sum(size.get(u, 0) for size in sizes) for u in result.survivors
        )
    assert measured.memory > 0


def test_the_grids_of_the_ring_vary_one_thing_at_a_time_up_to_a_thousand_clients():
    assert ring.RingCase(1000, 100_000) in ring.FULL
    for grid in (ring.FULL, ring.QUICK):
        lengths, clients = (ring._along(dict.fromkeys(grid), w) for w in ("clients", "length"))
        assert len({case.clients for case in lengths}) == 1
        assert len({case.length for case in clients}) == 1
        assert min(len(lengths), len(clients)) >= 2
