"""Which graph a run's masks take, and that sums over sparse graphs are the same sums."""

import pytest
from aggregators import build, outcomes

from codream_secure.aggregation.graph import COMPLETE, MaskGraph, mask_graph
from codream_secure.aggregation.settings import colluders
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from protocols.graph_parameters import chosen_parameters, ring_parameters
from protocols.params import Chosen, Ring

BAD = {"threat_model": "malicious"}


def graph(steps=8, **options):
    return mask_graph(resolve(Config.from_options(options)), steps)


def test_without_a_word_the_graph_is_complete_for_any_number():
    assert graph(clients=1000) == COMPLETE
    assert (COMPLETE.ring, COMPLETE.chosen) == (None, None)


@pytest.mark.parametrize("model", [{}, BAD], ids=str)
def test_auto_is_complete_up_to_a_hundred_clients_then_sparse_and_says_why(model):
    few = graph(clients=100, graph="auto", **model)
    assert (few.name, few.sparse) == ("complete", None)
    assert "up to 100 clients" in few.why
    many = graph(clients=101, graph="auto", **model)
    assert many.name == ("chosen" if model else "ring")
    assert many.why == "more than 100 clients"
    named = graph(clients=101, graph=many.name, **model)
    assert (named.sparse, named.why) == (many.sparse, "")


def test_the_numbers_are_those_that_the_protocol_computes():
    chosen = graph(clients=1000, graph="chosen", **BAD)
    assert chosen.sparse == chosen_parameters(1000, steps=8)
    assert chosen.chosen == Chosen(119, 93)
    # 5 % may be silent before the ring is drawn; as many corrupt ones are on what is left of it.
    ring = graph(clients=1000, graph="ring")
    least = ring_parameters(950, corrupt=50 / 950, dropouts=0.05, steps=8)
    assert (ring.sparse, ring.ring) == (least, Ring(least.k, least.t))
    assert least.k >= ring_parameters(1000, corrupt=0.05, dropouts=0.05, steps=8).k


@pytest.mark.parametrize("model", [{}, BAD], ids=str)
def test_a_third_corrupt_has_no_sparse_graph(model):
    third = {"clients": 300, "graph_corrupt": 1 / 3, **model}
    why = "a third corrupt has no sparse graph: use the complete graph"
    found = graph(graph="auto", **third)
    assert found.name == "complete"
    assert found.why.startswith(why)
    with pytest.raises(UserError, match=why):
        graph(graph="chosen" if model else "ring", **third)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"graph": "ring", **BAD}, "chooses who drops out"),
        ({"graph": "chosen"}, "needs --threat-model malicious"),
        ({"graph": "chosen", "dp_eps": 8.0, **BAD}, "their noise, out of a sum unseen"),
        ({"graph": "chosen", "clients": 4, **BAD}, "no sparse graph of 4 clients"),
        ({"graph": "ring", "secure": False}, "--graph cannot be used with --no-secure"),
        ({"graph_silent": 0.1}, "--graph-silent needs --graph"),
    ],
)
def test_a_graph_that_would_protect_nobody_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        graph(**options)


def test_under_shared_noise_a_malicious_server_gets_the_complete_graph():
    found = graph(clients=200, graph="auto", dp_eps=8.0, **BAD)
    assert found.name == "complete"
    assert "out of a sum unseen" in found.why
    assert graph(clients=200, graph="auto", dp_eps=8.0).name == "ring"


@pytest.mark.parametrize("name", ["ring", "chosen"])
def test_sums_over_a_sparse_graph_are_those_in_the_clear(name):
    made = ring_parameters if name == "ring" else chosen_parameters
    sparse = made(12, corrupt=0.05, dropouts=0.1, steps=4)
    model = "semi-honest" if name == "ring" else "malicious"
    changes = {"n": 12, "threat_model": model, "graph": MaskGraph(name, "", sparse)}
    changes |= {"dropout": 0.04, "key_steps": 4, "expected_steps": 8, "seed": 3}
    masked, meters = build(secure=True, **changes)
    plain, _ = build(secure=False, **changes)
    found = list(outcomes(masked, 8))
    assert found == list(outcomes(plain, 8))
    assert {count for count, _ in found} > {12}
    assert masked.key_exchanges == plain.key_exchanges
    # What a client receives in an exchange tells that no complete graph was run.
    complete, others = build(secure=True, **changes | {"graph": COMPLETE})
    list(outcomes(complete, 8))
    down = [m.ledger.by_phase()["share_keys"]["down"] for m in (meters, others)]
    assert down[0] < down[1]


def test_a_sparse_graph_bears_as_many_colluders_as_it_was_made_for():
    sparse = chosen_parameters(200)
    aggregator, _ = build(
        secure=True, n=200, threat_model="malicious", graph=MaskGraph("chosen", "", sparse)
    )
    assert aggregator.colluders == colluders(aggregator._settings) == 10
    assert build(secure=True, n=200, threat_model="malicious")[0].colluders == 67
