"""Steps of a round, and the schedule of the learning rate."""

import pytest

from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.learning.schedule import acquisition_settings, rate_at


def settings(**options):
    return resolve(Config.from_options(options))


def test_a_constant_rate_never_changes():
    assert [rate_at(settings(), done) for done in (0.0, 0.5, 1.0)] == [1.0] * 3


def test_the_cosine_falls_from_one_to_zero():
    config = settings(schedule="cosine")
    found = [rate_at(config, done) for done in (0.0, 1 / 3, 0.5, 1.0, 1.2)]
    assert found == pytest.approx([1.0, 0.75, 0.5, 0.0, 0.0])


def test_a_round_takes_the_share_of_its_rounds_unless_another_is_given():
    config = settings(schedule="cosine", rounds=4, local_epochs=3, batch=16)
    taken = acquisition_settings(config, None, 100, 3)
    assert taken.rate == pytest.approx(0.5)
    assert taken.local_steps == 3 * (100 // 16)
    assert acquisition_settings(config, None, 100, 3, 0.0).rate == 1.0
