"""Defaults that depend on other settings, and the type that says that they are filled in."""

import dataclasses
import tomllib

import pytest

from codream_secure.config.resolved import PrivateRun, Resolved
from codream_secure.config.rules import resolve, to_toml
from codream_secure.config.settings import Config, constants
from codream_secure.errors import UserError

RUNS = {
    "plain": {},
    "fast": {"method": "codream-fast"},
    "mean of moves": {"dream_optimizer": "avg"},
    "private": {"dp_eps": 8.0},
    "private, no class means": {"dp_eps": 8.0, "statistics_eps": 0.0},
    "private in the clear": {"dp_eps": 8.0, "secure": False},
    "private clients": {"dp_eps": 8.0, "dp_unit": "client"},
    "alone": {"collaboration": False},
    "user-defined model": {"models": "my_module:my_function", "seed": 3},
}
every_run = pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)


@every_run
def test_what_is_resolved_is_read_back_from_options_and_from_toml(options):
    resolved = resolve(Config.from_options(options))
    assert resolve(Config.from_options(resolved.options())) == resolved
    assert resolve(Config.from_options(tomllib.loads(to_toml(resolved)))) == resolved


@every_run
def test_what_is_resolved_has_no_holes_in_what_rules_fill_in(options):
    resolved = resolve(Config.from_options(options))
    assert all(value is not None for value in dataclasses.astuple(resolved.dream))
    assert resolved.privacy.statistics_eps is not None
    assert resolved.model.models != "auto"


@every_run
def test_resolving_twice_changes_nothing(options):
    resolved = resolve(Config.from_options(options))
    assert resolve(resolved) is resolved


def test_a_private_run_has_a_type_of_its_own():
    assert type(resolve(Config())) is Resolved
    private = resolve(Config.from_options({"dp_eps": 2.0, "dp_delta": 1e-6}))
    assert type(private) is PrivateRun
    assert private.privacy.statistics_eps == pytest.approx(1.8)
    assert (private.data.validation, private.dream.prior_correction) == (0, 0)


def test_class_means_get_at_most_four_of_epsilon_and_none_where_nobody_masks():
    assert resolve(Config.from_options({"dp_eps": 100.0})).privacy.statistics_eps == 4
    alone = {"dp_eps": 100.0, "secure": False}
    assert resolve(Config.from_options(alone)).privacy.statistics_eps == 0


def test_one_run_s_defaults_leave_those_of_the_next_alone():
    before = dict(constants(Config()))
    assert resolve(Config.from_options({"dream_optimizer": "avg"})).dream.dream_lr == 1
    assert constants(Config()) == before


@pytest.mark.parametrize("name", ["dp_noise", "statistics_weight"])
def test_noise_that_nobody_adds_is_refused_at_once(name):
    value = {"dp_noise": "skellam", "statistics_weight": 1.0}[name]
    with pytest.raises(UserError, match="needs masks and collaboration"):
        resolve(Config.from_options({"dp_eps": 8.0, "secure": False, name: value}))


@pytest.mark.parametrize("option", ["augment", "dream_augment"])
@pytest.mark.parametrize("dataset", ["digits", "mnist", "emnist", "svhn"])
def test_digits_and_letters_are_never_mirrored(option, dataset):
    with pytest.raises(UserError, match=r"use --.*augment crop"):
        resolve(Config.from_options({option: "flip-crop", "dataset": dataset}))
    resolve(Config.from_options({option: "crop", "dataset": dataset}))
    resolve(Config.from_options({option: "flip-crop", "dataset": "cifar10"}))


def test_logits_that_training_balanced_are_not_corrected_again():
    assert resolve(Config.from_options({})).dream.prior_correction == 0.5
    balanced = {"local_loss": "balanced"}
    assert resolve(Config.from_options(balanced)).dream.prior_correction == 0.0
    chosen = Config.from_options({**balanced, "prior_correction": 0.25})
    assert resolve(chosen).dream.prior_correction == 0.25
