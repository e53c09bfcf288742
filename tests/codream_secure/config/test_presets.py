"""Presets are settings that go together, and say what they say they are."""

from pathlib import Path

import pytest

from benchmarks.learning.settings import CIFAR
from codream_secure.config.presets import PRESETS, preset, preset_text
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.storage.toml import load_toml

EXAMPLE = Path(__file__).parents[3] / "examples" / "heterogeneous.toml"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_run(name):
    resolve(Config.from_options(preset(name)))
    assert preset_text(name).startswith("# ")


def test_the_digits_are_the_defaults_written_out():
    assert resolve(Config.from_options(preset("digits"))) == resolve(Config())


def test_presets_are_the_settings_of_what_they_name():
    apart = {"dataset", "precision"}
    recorded = {name: value for name, value in CIFAR.items() if name not in apart}
    assert preset("cifar") == {**recorded, "dataset": "cifar10"}
    example = load_toml(EXAMPLE)
    for name in (*apart, "samples_per_client", "partition"):
        del example[name]
    assert preset("small-images") == example


def test_an_unknown_preset_is_refused_with_the_names_of_all():
    with pytest.raises(UserError, match="unknown preset 'photos'; there are digits, small-images"):
        preset("photos")
