"""Every number has bounds on both sides, of which the command line tells."""

import pytest

from codream_secure.config.settings import Config, settings
from codream_secure.errors import UserError

NUMBERS = [one for one in settings() if one.kind in (int, float)]


@pytest.mark.parametrize("one", NUMBERS, ids=lambda one: one.name)
def test_a_number_has_bounds_on_both_sides(one):
    for value in (10**15, -(10**15)) if one.name != "seed" else (2**63, -1):
        with pytest.raises(UserError, match="must be"):
            one.checked(one.kind(value))
    assert one.bounds


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 1e38), ("kd_temperature", 1e200), ("dream_lr", 1e300), ("rounds", 10**30)],
)
def test_what_floats_cannot_hold_is_refused(name, value):
    with pytest.raises(UserError, match="must be "):
        Config.from_options({name: value})
