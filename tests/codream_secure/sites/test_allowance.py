"""A site's own limit on epsilon, whatever its server asks for."""

import math

import pytest
from machines import OPTIONS, PRIVATE
from sum_sites import Momentum

from codream_secure.errors import RequestRefused, UserError
from codream_secure.sites import wire
from codream_secure.sites.allowance import Allowance, Costs
from codream_secure.sites.dream_site import DreamSite
from codream_secure.sites.site import Site
from codream_secure.storage.state_folder import StateFolder

PRIVATE = {name: value for name, value in PRIVATE.items() if name != "seed"}
PRIVATE |= {"rounds": 1, "statistics_eps": 0.0}


def hello(there, options, session, spec=None):
    """Say hello to site 0, as a server with these options does."""
    first = there.coordinator(options)._run
    with DreamSite(there.settings(0)) as site:
        return site.handle(wire.Hello(wire.VERSION, session, first.options, spec or first.spec, ()))


def test_runs_add_up_and_what_is_too_much_is_refused(machines):
    there = machines(policy="epsilon = 10.0\ndelta = 1e-4")
    assert len(list(there.coordinator(PRIVATE).rounds())) == 1
    assert there.told == []
    with pytest.raises(UserError, match="0 of 4 sites"):
        list(there.coordinator(PRIVATE).rounds())
    assert "the site would have spent epsilon 16, and it allows 10" in there.told[0]


def test_a_session_counts_once_and_a_smaller_one_still_fits(machines):
    there = machines(policy="epsilon = 10.0\ndelta = 1e-4")
    for _ in range(2):
        assert not hello(there, PRIVATE, bytes(32)).refused
    assert not hello(there, PRIVATE | {"dp_eps": 2.0}, b"1" * 32).refused
    assert "epsilon 10.5" in hello(there, PRIVATE | {"dp_eps": 0.5}, b"2" * 32).refused


def test_a_known_session_with_other_terms_or_after_another_is_charged_again(machines):
    there = machines(policy="epsilon = 10.0\ndelta = 1e-3")
    assert "shape" in hello(there, PRIVATE | {"dp_eps": 0.5}, bytes(32), spec=(3, 8, 8, 10)).refused
    assert "epsilon 100.5" in hello(there, PRIVATE | {"dp_eps": 100.0}, bytes(32)).refused
    there = machines(policy="epsilon = 4.0\ndelta = 1e-3")
    smaller = PRIVATE | {"dp_eps": 1.5}
    hello(there, smaller, b"a" * 32)
    hello(there, smaller, b"b" * 32)
    assert "epsilon" in hello(there, smaller, b"a" * 32).refused


@pytest.mark.parametrize("number", [-1e6, 0.0, float("nan"), float("inf"), True, "8"])
def test_numbers_that_are_none_are_refused(machines, number):
    there = machines(policy="epsilon = 0.5" if number is True else "epsilon = 1.0")
    run = there.coordinator(PRIVATE)._run
    message = wire.Hello(wire.VERSION, bytes(32), run.options | {"dp_eps": number}, run.spec, ())
    with DreamSite(there.settings(0)) as site:
        assert site.handle(message).refused
    assert not (there.folder / "site-0" / "allowance").exists()


@pytest.mark.parametrize("epsilon", [None, 1.0])
@pytest.mark.parametrize("number", [-1e6, 0.0, math.nan, math.inf])
def test_no_number_gives_budget_back(tmp_path, epsilon, number):
    options = {"dp_unit": "example", "statistics_eps": 0}
    with StateFolder(tmp_path) as folder:
        for costs in (Costs(number, math.inf, 1e-5), Costs(0.5, math.inf, number)):
            with pytest.raises(RequestRefused):
                Allowance(epsilon).charge(folder, bytes(32), options, costs, colluders=None)
    assert not (tmp_path / "allowance").exists()


def test_sums_in_the_same_folder_do_not_give_budget_back(machines):
    """The attack: the summing app's first message erased what the dreaming app had spent."""
    there = machines(policy="epsilon = 8.0\ndelta = 1e-4")
    assert not hello(there, PRIVATE, bytes(32)).refused
    before = (there.folder / "site-0" / "allowance").read_bytes()
    begin = wire.Begin(wire.VERSION, b"2" * 32, 4, 3, "semi-honest", 4, False, (), bytes(32))
    with Site(there.settings(0), Momentum(0)) as site:
        for message in (begin, wire.End()):
            assert not site.handle(message).refused
        assert site._current.session == b"2" * 32
    assert (there.folder / "site-0" / "allowance").read_bytes() == before
    assert "epsilon 16" in hello(there, PRIVATE, b"1" * 32).refused


def test_what_was_spent_without_a_limit_counts_when_there_is_one(machines):
    there = machines()
    assert not hello(there, PRIVATE, bytes(32)).refused
    (there.folder / "policy.toml").write_text("epsilon = 10.0\ndelta = 1e-4")
    assert "epsilon 16" in hello(there, PRIVATE, b"1" * 32).refused


def test_class_means_need_a_roster_and_noise_for_its_liars(tmp_path):
    options = {"dp_unit": "example", "statistics_eps": 0.5}
    allowance, costs = Allowance(10.0, 1e-3), Costs(1.0, math.inf, 1e-5)
    with StateFolder(tmp_path) as folder:
        for colluders, chosen in ((None, None), (2, 1), (2, "x")):
            asked = options | {"noise_colluders": chosen}
            with pytest.raises(RequestRefused):
                allowance.charge(folder, bytes(32), asked, costs, colluders=colluders)
        asked = options | {"noise_colluders": 2}
        allowance.charge(folder, bytes(32), asked, costs, colluders=2)
        allowance.charge(folder, b"1" * 32, options, costs, colluders=2)


def test_deltas_add_up_too(machines):
    there = machines(policy="epsilon = 100.0")
    assert not hello(there, PRIVATE, bytes(32)).refused
    assert "delta 2e-05" in hello(there, PRIVATE, b"1" * 32).refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (OPTIONS, "under differential privacy only"),
        (PRIVATE | {"seed": 3}, "the server knows this site's noise"),
    ],
)
def test_what_protects_nothing_is_refused(machines, options, told):
    there = machines(policy="epsilon = 10.0")
    assert told in hello(there, options, bytes(32)).refused
    assert not (there.folder / "site-0" / "allowance").exists()
