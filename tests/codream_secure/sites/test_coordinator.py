"""The server of a run over machines, without Flower: a simulation's bits, faults, absent sites."""

import pytest
from machines import OPTIONS, PRIVATE

from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.sites import wire


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        {**OPTIONS, "threat_model": "malicious"},
        {**OPTIONS, "method": "codream-fast", "dream_batches": 2, "dreams": 4},
        {**OPTIONS, "method": "codream-fast", "dream_batches": 2, "parallel_batches": True},
        {**OPTIONS, "local_steps": 3, "adaptive": "jsd", "label_weighting": "confidence"},
        PRIVATE,
    ],
    ids=["plain", "malicious", "fast", "parallel batches", "options", "private"],
)
def test_dreams_are_those_of_a_simulation_bit_by_bit(machines, options):
    there = machines(malicious=options.get("threat_model") == "malicious")
    coordinator = there.coordinator(options)
    rounds = list(coordinator.rounds())
    simulation = Simulation(Config.from_options(options), compare_independent=False)
    list(simulation.rounds())
    found = [dream for one in rounds for dream in one.dreams]
    assert (
        len(found) == len(simulation.dreams) == 2 * (resolve(simulation.config).dream.dream_batches)
    )
    for here, expected in zip(found, simulation.dreams, strict=True):
        assert (here.pixels == expected.pixels).all()
        assert (here.targets == expected.targets).all()
    assert rounds[-1].server == pytest.approx(simulation.observer.history[-1].server)
    assert [one.learned for one in rounds] == [4, 4]
    assert there.told == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["Advertise", "Share", "Ask", "Unmask"])
def test_a_site_that_dies_costs_no_more_than_itself_and_comes_back(machines, when, kind):
    there = machines()
    died = []

    def fault(_number, site, message):
        if site == 2 and type(message).__name__ == kind and not died:
            died.append(kind)
            return when
        return None

    there.fault = fault
    rounds = list(there.coordinator(OPTIONS).rounds())
    assert died == [kind]
    assert [len(one.dreams) for one in rounds] == [1, 1]
    assert [one.learned for one in rounds] == [4, 4]
    assert any("site 2 did not answer" in line for line in there.told)
    # In the second round, with new keys, it takes part again.
    assert (2, "Ask") in there.log[len(there.log) // 2 :]


def test_below_the_threshold_a_step_is_aborted_and_the_run_goes_on(machines):
    there = machines()
    asked = []

    def fault(_number, site, message):
        if isinstance(message, wire.Ask):
            asked.append(site)
            return "before" if len(asked) <= 4 and site in {0, 1} else None
        return None

    there.fault = fault
    coordinator = there.coordinator(OPTIONS)
    rounds = list(coordinator.rounds())
    assert coordinator.aggregator.aborted_steps == 1
    assert [len(one.dreams) for one in rounds] == [1, 1]


def test_the_same_message_again_gets_the_same_bytes(machines):
    there = machines()
    real, twice = there.carry, []

    def carry(messages):
        first, second = real(messages), real(messages)
        kinds = {type(wire.decode(m)).__name__ for m in messages.values()}
        if kinds & {"Advertise", "Share", "Ask", "Unmask"}:
            twice.append(first == second)
        return second

    there.carry = carry
    rounds = list(there.coordinator(OPTIONS).rounds())
    assert twice
    assert all(twice)
    simulation = Simulation(Config.from_options(OPTIONS), compare_independent=False)
    list(simulation.rounds())
    assert (rounds[-1].dreams[0].pixels == simulation.dreams[-1].pixels).all()


def test_it_is_not_asked_for_under_dp_nor_where_it_is_turned_off(machines):
    there = machines()
    assert [one.sites for one in there.coordinator(PRIVATE).rounds()] == [None, None]
    assert [one.sites for one in there.coordinator(OPTIONS, evaluates=False).rounds()] == [None] * 2


def test_too_few_sites_end_the_run_in_one_line(machines):
    there = machines()
    there.fault = lambda _n, site, _m: "before" if site < 2 else None
    with pytest.raises(UserError, match="2 of 4 sites can take part and 3 must"):
        list(there.coordinator(OPTIONS).rounds())


def test_a_site_that_missed_labels_is_sent_them_before_the_next_round(machines):
    there = machines()
    missed = []

    def fault(_number, site, message):
        if site == 3 and isinstance(message, wire.Learn) and not missed:
            missed.append(message)
            return "before"
        return None

    there.fault = fault
    rounds = list(there.coordinator(OPTIONS).rounds())
    assert [one.learned for one in rounds] == [3, 4]
    assert [m for s, m in there.messages if s == 3 and m == missed[0]] == missed * 2
    assert not any("was told other things" in line for line in there.told[2:])


def test_what_cannot_run_over_machines_is_said(machines):
    with pytest.raises(UserError, match="always masked"):
        machines().coordinator({**OPTIONS, "secure": False})


def test_a_server_with_another_roster_is_refused(machines):
    there = machines(malicious=True)
    roster, there.roster = there.roster, tuple(reversed(there.roster))
    coordinator = there.coordinator({**OPTIONS, "threat_model": "malicious"})
    there.roster = roster
    with pytest.raises(UserError, match="0 of 4 sites"):
        list(coordinator.rounds())
