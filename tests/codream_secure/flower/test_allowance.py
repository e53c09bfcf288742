"""A site's own limit on epsilon, whatever its server asks for."""

import pytest
from machines import OPTIONS, PRIVATE

from codream_secure.errors import UserError
from codream_secure.flower import wire
from codream_secure.flower.allowance import Allowance
from codream_secure.flower.node import site_settings
from codream_secure.flower.site import Site

PRIVATE = {name: value for name, value in PRIVATE.items() if name != "seed"} | {"rounds": 1}


def hello(there, options, session):
    """Say hello to site 0, as a server with these options does."""
    first = there.coordinator(options)._record()
    with Site(there.settings(0)) as site:
        return site.handle(wire.Hello(wire.VERSION, session, first.options, first.spec, ()))


def test_runs_add_up_and_what_is_too_much_is_refused(machines):
    there = machines(allowance=Allowance(10.0, 1e-4))
    assert len(list(there.coordinator(PRIVATE).run())) == 1
    assert there.told == []
    with pytest.raises(UserError, match="0 of 4 sites"):
        list(there.coordinator(PRIVATE).run())
    assert "the site would have spent epsilon 16, and 10 is what it allows" in there.told[0]


def test_a_session_counts_once_and_a_smaller_one_still_fits(machines):
    there = machines(allowance=Allowance(10.0, 1e-4))
    for _ in range(2):
        assert not hello(there, PRIVATE, bytes(32)).refused
    assert not hello(there, PRIVATE | {"dp_eps": 2.0}, b"1" * 32).refused
    assert "epsilon 10.5" in hello(there, PRIVATE | {"dp_eps": 0.5}, b"2" * 32).refused


def test_deltas_add_up_too(machines):
    there = machines(allowance=Allowance(100.0))
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
    there = machines(allowance=Allowance(10.0))
    assert told in hello(there, options, bytes(32)).refused
    assert not (there.folder / "site-0" / "allowance").exists()


def test_the_limits_stand_in_the_configuration_of_the_node():
    words = {"client": 0, "state": "s", "data": "digits"}
    assert site_settings(words).allowance is None
    assert site_settings(words | {"max-epsilon": 8}).allowance == Allowance(8.0, 1e-5)
    both = words | {"max-epsilon": "8", "max-delta": 1e-6}
    assert site_settings(both).allowance == Allowance(8.0, 1e-6)
    for bad in ("x", 0, -1, "nan", "inf"):
        with pytest.raises(UserError, match="a number above 0 is wanted"):
            site_settings(words | {"max-epsilon": bad})
