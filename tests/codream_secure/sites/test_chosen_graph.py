"""A run over machines on the graph that sites choose themselves (SPEC 1.4, 8.8)."""

import pytest
from machines import OPTIONS

from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.sites import run_terms, wire
from protocols.messages import ChosenDirectory

RUN = {
    **OPTIONS,
    "clients": 8,
    "rounds": 2,
    "dream_steps": 1,
    "models": "linear",
    "threat_model": "malicious",
    "graph": "chosen",
}
TAG = ChosenDirectory.__struct_config__.tag


def test_sites_that_count_on_few_colluders_run_on_it_and_one_may_be_silent(machines):
    there = machines(malicious=True, sites=8, policy="colluders = 1")
    silent = []

    def fault(_number, site, message):
        if site == 3 and isinstance(message, wire.Unmask) and not silent:
            silent.append(site)
            return "before"
        return None

    there.fault = fault
    coordinator = there.coordinator(RUN)
    rounds = list(coordinator.rounds())
    assert silent == [3]
    assert [len(one.dreams) for one in rounds] == [1, 1]
    assert rounds[-1].learned == 8
    assert coordinator.aggregator.graph.name == "chosen"
    directories = [m.directory for _, m in there.messages if isinstance(m, wire.Share)]
    assert directories
    assert all(data[1] == TAG for data in directories)


def test_a_site_that_counts_on_a_third_refuses_it(machines):
    there = machines(malicious=True, sites=8)
    with pytest.raises(UserError, match="0 of 8 sites can take part"):
        list(there.coordinator(RUN).rounds())
    told = "--graph chosen is made for 1 colluders of 8, and this site counts on up to 3"
    assert sum(told in line for line in there.told) == 8


@pytest.mark.parametrize("graph", ["ring", "auto"])
def test_only_graphs_that_sites_can_hold_a_run_to_go_over_machines(machines, graph):
    model = "semi-honest" if graph == "ring" else "malicious"
    with pytest.raises(UserError, match=f"--graph {graph} can only be simulated"):
        machines().coordinator(RUN | {"graph": graph, "threat_model": model})


def test_another_number_of_clients_is_refused_before_a_graph_is_computed(machines, monkeypatch):
    """The attack: parameters for 16,384 clients take a site seconds, for one message."""
    there = machines(malicious=True, sites=8)
    monkeypatch.setattr(run_terms, "mask_graph", pytest.fail)
    options = resolve(Config.from_options(RUN | {"clients": 16_384})).options()
    hello = wire.Hello(wire.VERSION, bytes(32), options, (1, 8, 8, 10), there.roster, bytes(32))
    told = wire.decode_answer(there.carry({0: wire.encode(hello)})[0]).refused
    assert "a run of 16384 sites, and the roster has 8" in told
