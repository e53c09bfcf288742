"""The ring: parameters against the published conditions in exact integers, and neighbourhoods."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.graph import complete, ring_neighbours, ring_order
from protocols.graph_parameters import RingModel, _log2_split, _log2_tail, ring_parameters

THIRD = 1 / 3


FRACTIONS = [(0.05, 0.05), (0.1, 0.1), (0.2, 0.2), (THIRD, 0.1), (THIRD, THIRD)]


MODELS = (RingModel.SEMI_HONEST, RingModel.EQUIVOCATING)


# n -> (k, t) semi-honest and equivocating for each of FRACTIONS; sigma = 40, eta = 30.
TABLE = {
    10: [(4, 2), (4, 3), (4, 2), (4, 3), (6, 3), (8, 6), (6, 5), (8, 7), (9, 5), None],
    100: [(12, 6), (16, 11), (22, 11), (32, 22), (42, 21), (62, 42), (42, 32), (56, 46), (70, 35),
          None],
    1000: [(34, 18), (60, 41), (52, 28), (114, 78), (112, 58), (340, 229), (114, 78), (248, 192),
           (322, 165), None],
    10_000: [(38, 21), (74, 51), (60, 32), (144, 98), (134, 70), (562, 378), (140, 95),
             (364, 281), (492, 251), None],
}  # fmt: skip


CELLS = [
    (n, FRACTIONS[i // 2], MODELS[i % 2], (40, 30), cell)
    for n, row in TABLE.items()
    for i, cell in enumerate(row)
] + [
    (n, (fraction, fraction), model, (64, 40), cell)
    for n, fraction, model, cell in [
        (1000, 0.05, MODELS[0], (44, 25)),
        (1000, 0.05, MODELS[1], (78, 54)),
        (1000, 0.1, MODELS[0], (70, 39)),
        (1000, 0.1, MODELS[1], (144, 99)),
        (10_000, 0.05, MODELS[0], (52, 29)),
        (10_000, 0.05, MODELS[1], (98, 68)),
        (10_000, 0.1, MODELS[0], (82, 45)),
        (10_000, 0.1, MODELS[1], (188, 129)),
    ]
]


def exact_tail(population: int, marked: int, draws: int, least: int) -> Fraction:
    ways = sum(
        math.comb(marked, j) * math.comb(population - marked, draws - j)
        for j in range(max(least, 0), min(draws, marked) + 1)
        if draws - j <= population - marked
    )
    return Fraction(ways, math.comb(population, draws))


def exact_split(n: int, gone: int, k: int) -> Fraction:
    if k == n - 1:
        return Fraction(0)
    product = Fraction(math.comb(n, 2))
    for i in range(k):
        product *= Fraction(max(gone - i, 0), n - i)
    return product


@pytest.mark.parametrize(("n", "fractions", "model", "security", "cell"), CELLS)
def test_every_cell_of_the_table(n, fractions, model, security, cell):
    names = ("corrupt", "dropouts", "sigma", "eta")
    values = dict(zip(names, fractions + security, strict=True)) | {"model": model}
    if cell is None:
        with pytest.raises(ConfigError, match="no ring"):
            ring_parameters(n, **values)
        return
    found = ring_parameters(n, **values)
    assert (found.k, found.t) == cell


def holds(n: int, gone: tuple[int, int], model: RingModel, choice: tuple[int, int]) -> bool:
    """All three conditions in exact arithmetic, sigma = 20, eta = 15."""
    (bad, quiet), (k, t) = gone, choice
    reached = 2 * t - k if model is RingModel.EQUIVOCATING else t
    exposed = n * exact_tail(n - 1, bad, k, reached) if reached > 0 else 1
    stuck = n * exact_tail(n - 1, quiet, k, k - t + 1)
    split = exact_split(n, bad + quiet, k)
    return max(exposed, split) <= Fraction(1, 2**20) and stuck <= Fraction(1, 2**15)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("n", "corrupt", "silent"), [(12, 0.1, 0.1), (30, 0.1, 0.2), (41, 0, 0.1)])
def test_nothing_smaller_satisfies_the_conditions_in_exact_arithmetic(n, corrupt, silent, model):
    found = ring_parameters(n, corrupt=corrupt, dropouts=silent, sigma=20, eta=15, model=model)
    options = [
        (k, t)
        for k in (*range(2, n - 1, 2), n - 1)
        for t in range(2, k + 1)
        if holds(n, (found.corrupt, found.dropouts), model, (k, t))
    ]
    assert (found.k, found.t) == min(options)


@given(st.integers(2, 300), st.data())
def test_logarithms_match_exact_integers(n, data):
    marked, draws = (data.draw(st.integers(0, n)) for _ in range(2))
    least = data.draw(st.integers(0, n))
    exact = exact_tail(n, marked, draws, least)
    found = _log2_tail(n, marked, draws, least)
    if exact == 0:
        assert found == -math.inf
    elif found != 0:
        log2 = math.log2(exact.numerator) - math.log2(exact.denominator)
        assert found == pytest.approx(log2, abs=1e-8)
    k = data.draw(st.integers(1, n - 1))
    split, bound = exact_split(n, marked, k), _log2_split(n, marked, k)
    if split == 0:
        assert bound == -math.inf
    else:
        assert bound == pytest.approx(
            math.log2(split.numerator) - math.log2(split.denominator), abs=1e-8
        )


def test_failure_probabilities_are_within_what_was_asked_for():
    for model in MODELS:
        found = ring_parameters(1000, corrupt=0.1, dropouts=0.1, model=model)
        assert (found.corrupt, found.dropouts) == (100, 100)
        assert max(found.log2_exposed, found.log2_split) <= -40
        assert found.log2_stuck <= -30


def test_more_steps_need_a_larger_degree():
    one, many = (
        ring_parameters(1000, corrupt=0.1, dropouts=0.1, steps=steps) for steps in (1, 1 << 20)
    )
    assert many.k > one.k
    assert max(many.log2_exposed, many.log2_split) <= -40


def test_float_fractions_do_not_count_one_client_too_many():
    found = ring_parameters(30, corrupt=0.1, dropouts=0.1)
    assert (found.corrupt, found.dropouts) == (3, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 2},
        {"n": 16385},
        {"corrupt": -0.1},
        {"corrupt": 1.0},
        {"dropouts": math.nan},
        {"corrupt": 0.6, "dropouts": 0.5},
        {"sigma": 0},
        {"eta": 257},
        {"steps": 0},
    ],
)
def test_arguments_are_checked(wrong):
    values = {"n": 100, "corrupt": 0.1, "dropouts": 0.1, **wrong}
    with pytest.raises(ConfigError):
        ring_parameters(values.pop("n"), **values)


def test_there_is_no_ring_against_a_malicious_server():
    assert "malicious" not in {model.value for model in RingModel}


@given(st.sets(st.integers(0, 2**64 - 1), min_size=3, max_size=40), st.binary(), st.data())
def test_the_ring_is_regular_and_symmetric_and_everyone_computes_the_same(members, seed, data):
    order = ring_order(members, seed)
    assert order == ring_order(sorted(members, reverse=True), seed)
    assert set(order) == members
    n = len(order)
    k = data.draw(st.sampled_from([*range(2, n - 1, 2), n - 1]))
    neighbours = {u: ring_neighbours(u, order, k) for u in order}
    for u, peers in neighbours.items():
        assert len(set(peers)) == k
        assert list(peers) == sorted(peers)
        assert u not in peers
        assert all(u in neighbours[v] for v in peers)
    position = order.index(order[0])
    assert order[(position + 1) % n] in neighbours[order[0]]


def test_orders_differ_between_seeds_and_every_place_is_reached():
    members = range(5)
    orders = [ring_order(members, bytes([i, j])) for i in range(30) for j in range(30)]
    assert len(set(orders)) == 120
    for client in members:
        places = [order.index(client) for order in orders]
        assert all(130 < places.count(place) < 230 for place in range(5))


def test_neighbourhoods_that_do_not_exist_are_refused():
    order = (5, 3, 9, 1, 7, 2)
    assert ring_neighbours(9, order, 2) == (1, 3)
    assert ring_neighbours(5, order, 4) == (2, 3, 7, 9)
    assert ring_neighbours(5, order, 5) == (1, 2, 3, 7, 9)
    for client, k in [(4, 2), (5, 0), (5, 3), (5, 6), (5, -2)]:
        with pytest.raises(ConfigError):
            ring_neighbours(client, order, k)


def test_complete_graph():
    assert complete(3, (1, 3, 5)) == (1, 5)
