"""Values of options: types, ranges, and the one line that says what is allowed."""

import numpy as np
import pytest

from codream_secure.config.settings import Config, settings
from codream_secure.errors import UserError

REFUSED = [
    ({"clients": 1}, "--clients must be from 2 to 10000000, not 1"),
    ({"clients": True}, "--clients must be a whole number, not True"),
    ({"clients": 2.0}, "--clients must be a whole number, not 2.0"),
    ({"bits": 17}, "--bits must be from 1 to 16, not 17"),
    ({"dropout": -0.1}, "--dropout must be from 0 to 1, not -0.1"),
    ({"dp_eps": 0}, "--dp-eps must be from 0.000001 to 1000, not 0"),
    ({"dp_eps": float("inf")}, "--dp-eps must be a finite number, not inf"),
    ({"statistics_momentum": 1}, "--statistics-momentum must be at least 0 and below 1, not 1"),
    ({"secure": 1}, "--secure must be true or false, not 1"),
    ({"dataset": 3}, "--dataset must be a text, not 3"),
    ({"meta": "other"}, "--meta must be one of fomaml, reptile, not 'other'"),
    ({"colour": "red"}, "unknown setting 'colour'; see codream-secure simulate --help-all"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_value_that_is_not_allowed_is_named_with_what_is(options, says):
    with pytest.raises(UserError) as refused:
        Config.from_options(options)
    assert str(refused.value) == says


def test_whole_numbers_are_numbers_and_none_is_not_given():
    config = Config.from_options({"dp_eps": 8, "label_clip": np.float64(2.5), "rounds": None})
    assert type(config.privacy.dp_eps) is type(config.learning.label_clip) is float
    assert config == Config.from_options({"dp_eps": 8.0, "label_clip": 2.5})


def test_every_default_is_a_value_that_the_option_allows():
    for setting in settings():
        if setting.default is not None:
            assert setting.checked(setting.default) == setting.default


def test_every_option_says_what_it_is():
    assert all(setting.help and "\n" not in setting.help for setting in settings())
    assert len({setting.name for setting in settings()}) == len(settings())
