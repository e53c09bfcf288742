"""Runs with the site as the unit of privacy: what a server cannot get beyond its noisy sums."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from machines import OPTIONS, asking

from codream_secure.aggregation.requests import EvaluateRequest, LabelRequest
from codream_secure.config.combinations import (
    _RULES,
    MESSENGER_ONLY,
    WITHOUT_MESSENGER,
    WITHOUT_NOISE,
    inapplicable,
)
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config, settings
from codream_secure.data.spec import InputSpec
from codream_secure.errors import RequestRefused, UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.sites import coordinator, site_log, wire
from codream_secure.sites import run_terms as run_terms_module
from codream_secure.sites.run_terms import proposed, run_costs, run_label_plan, run_terms

BY_SITE = {
    **{k: v for k, v in OPTIONS.items() if k not in ("seed", "validation")},
    "models": "linear",
    "dp_eps": 8.0,
    "dp_unit": "client",
    "accept_low_utility": True,
    "threat_model": "malicious",
}
SPEC = InputSpec(1, 8, 8, 10)


def resolved(**options):
    return resolve(Config.from_options(BY_SITE | options))


def charged(there):
    return [(there.folder / f"site-{s}" / "charged").exists() for s in range(4)]


def changing(there, change):
    """Let the server change every request before it is sent to sites."""
    there.lie(lambda _, message: asking(message, change))


def test_a_seed_that_makes_the_noise_known_is_refused_always(machines, monkeypatch):
    """The attack: the server sends a seed, and can compute every site's share of the noise."""
    with pytest.raises(UserError, match="the server would know the noise"):
        machines(malicious=True).coordinator(BY_SITE | {"seed": 3})
    # A server without that check: the sites, whose policy has no epsilon, refuse on their own.
    monkeypatch.setattr(coordinator, "unfit_for_machines", lambda _: "")
    there = machines(malicious=True)
    with pytest.raises(UserError, match="0 of 4 sites can take part"):
        list(there.coordinator(BY_SITE | {"seed": 3, "rounds": 1}).rounds())
    assert sum("the server would know the noise" in line for line in there.told) == 4
    assert charged(there) == [False] * 4


def test_a_run_over_machines_is_that_of_the_simulation(machines, data, monkeypatch):
    # Only with a seed, which sites refuse, do both draw the same noise.
    for module in (coordinator, run_terms_module):
        monkeypatch.setattr(module, "unfit_for_machines", lambda _: "")
    options = BY_SITE | {"seed": 3, "validation": 0.0}
    there = machines(malicious=True)
    rounds = list(there.coordinator(options).rounds())
    assert there.told == []
    simulation = Simulation(Config.from_options(options), dataset=data, compare_independent=False)
    list(simulation.rounds())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    for one, other in zip(rounds, simulation.dreams, strict=True):
        assert np.array_equal(one.dreams[0].pixels, other.pixels)
        assert np.array_equal(one.dreams[0].targets, other.targets)
    found = there.running.label_plan.guarantee()
    assert (found.unit, found.steps, found.noise_colluders) == ("client", 2, 1)
    assert found.epsilon == simulation.guarantee().epsilon <= 8.0
    assert (there.folder / "site-0" / "charged").read_bytes() == b"2"
    (line,) = [n for n in site_log.lines(there.folder / "site-0") if "answered" in n]
    assert "answered: LabelRequest 2; " in line
    assert "epsilon 8 of one client, delta 1e-05" in line


def test_without_a_roster_nobody_s_noise_counts(machines):
    with pytest.raises(UserError, match="needs --threat-model malicious over machines"):
        machines().coordinator(BY_SITE | {"threat_model": "semi-honest"})


@pytest.mark.parametrize(
    "change",
    [
        {"variance": 1},
        {"l2": 1, "cap": 1},
        {"maximum": 100_000},
        {"noise": "skellam"},
    ],
    ids=["less noise", "another clip", "another range", "another kind"],
)
def test_a_server_that_asks_on_other_terms_gets_nothing(machines, change):
    """The attack: it knows what sites would add, and asks them to add less."""
    there = machines(malicious=True)

    def lie(asked):
        noisy = msgspec.structs.replace(asked.labels.noisy, **change)
        labels = msgspec.structs.replace(asked.labels, noisy=noisy)
        return msgspec.structs.replace(asked, labels=labels)

    changing(there, lie)
    rounds = list(there.coordinator(BY_SITE | {"rounds": 1}).rounds())
    assert rounds[0].dreams == ()
    assert sum("on terms that this client does not know" in line for line in there.told) == 4
    assert charged(there) == [False] * 4


def test_a_server_that_asks_for_labels_without_noise_or_for_accuracies_gets_nothing(machines):
    for lie, told in (
        (without_noise, "labels with noise, and nothing else"),
        (accuracy, "EvaluateRequest"),
    ):
        there = machines(malicious=True)
        there.folder = there.folder.with_name(lie.__name__)
        changing(there, lie)
        rounds = list(there.coordinator(BY_SITE | {"rounds": 1}).rounds())
        assert rounds[0].dreams == ()
        assert sum(told in line for line in there.told) == 4, there.told
    with pytest.raises(UserError, match="an accuracy has no noise"):
        machines(malicious=True).coordinator(BY_SITE, evaluates=True)


def without_noise(asked):
    labels = msgspec.structs.replace(asked.labels, noisy=None)
    return msgspec.structs.replace(asked, labels=labels)


def accuracy(asked):
    return EvaluateRequest(version=asked.version, round=0)


@pytest.mark.parametrize(
    ("options", "more", "told"),
    [
        ({"clients": 100}, {}, "a run of 100 sites, and the roster has 4"),
        ({"clients": 100}, {"identities": 100}, "is not this site's roster"),
        ({"noise_colluders": 0}, {}, "noise for 0 colluders, and 1 must be reckoned with"),
        ({"threshold": 4, "noise_colluders": 1}, {}, "and 2 must be reckoned with"),
        ({"dp_eps": 20.0}, {}, "would have spent epsilon 20, and it allows 10"),
        ({"rounds": 2000}, {}, "max_rounds"),
        ({"seed": 3}, {}, "the server would know the noise"),
        ({"dp_unit": "example", "models": "mlp"}, {}, "--dp-unit client"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_cohort_is_not_inflated_and_noise_not_thinned(machines, options, more, told):
    """The attack: noise is shared by sites that do not exist, or that work for the server."""
    there = machines(malicious=True, policy='epsilon = 10.0\ndelta = 1e-3\nunit = "client"')
    changed = BY_SITE | options
    if options.get("dp_unit") == "example":
        del changed["accept_low_utility"], changed["warmup_epochs"]
    identities = there.roster
    if "identities" in more:
        identities += (bytes(32),) * (more["identities"] - len(identities))
    options = resolve(Config.from_options(changed)).options()
    hello = wire.Hello(wire.VERSION, bytes(32), options, (1, 8, 8, 10), identities, bytes(32))
    answer = there.carry({0: wire.encode(hello)})
    assert told in wire.decode_answer(answer[0]).refused
    assert not (there.folder / "site-0" / "allowance").exists()


def test_many_sessions_share_one_budget(machines):
    there = machines(malicious=True, policy='epsilon = 10.0\ndelta = 1e-3\nunit = "client"')
    options = BY_SITE | {"rounds": 1}
    assert len(list(there.coordinator(options).rounds())) == 1
    with pytest.raises(UserError, match="0 of 4 sites"):
        list(there.coordinator(options).rounds())
    assert "epsilon 16, and it allows 10" in there.told[0]


def test_one_sum_more_than_was_planned_is_refused(machines):
    """The attack: the noise is that of one sum, and the server asks for two."""
    there = machines(malicious=True)
    coordinator = there.coordinator(BY_SITE | {"rounds": 1, "key_steps": 4})
    coordinator.prepare()
    assert len(coordinator.server.dream(1, lambda: None)) == 1
    coordinator.label_plan.total = 9
    coordinator.aggregator._settings = replace(coordinator.aggregator._settings, expected_steps=9)
    assert coordinator.server.dream(2, lambda: None) == []
    assert sum("all 1 noisy sums are spent" in line for line in there.told) == 4


def test_the_last_answer_is_given_again_though_the_budget_is_spent(machines):
    there = machines(malicious=True)
    carry, pairs = there.carry, []

    def twice(messages):
        first = carry(messages)
        if isinstance(wire.decode(messages[0]), wire.Ask):
            pairs.append((first, carry(messages)))
        return first

    there.carry = twice
    list(there.coordinator(BY_SITE | {"rounds": 1}).rounds())
    assert there.told == []
    ((first, again),) = pairs
    assert first == again


def test_what_a_site_spent_as_the_unit_counts_for_its_examples(machines):
    """From the site's data to none, and from none to the changed data: twice the sensitivity."""
    config = resolved(rounds=1)
    costs = run_costs(config, SPEC)
    plan = run_label_plan(config, SPEC)
    assert costs.client == 8.0
    assert plan.epsilon() == 0.0
    assert 2 * 8.0 < costs.example < 4 * 8.0
    assert run_costs(resolve(Config.from_options(OPTIONS)), SPEC) is None
    assert run_terms(config).kinds == (LabelRequest.__name__,)
    there = machines(malicious=True, policy="epsilon = 30.0\ndelta = 1e-3")
    options = BY_SITE | {"rounds": 1}
    list(there.coordinator(options).rounds())
    with pytest.raises(UserError):
        list(there.coordinator(options).rounds())
    assert f"epsilon {2 * costs.example:g}, and it allows 30" in there.told[0]


def test_never_the_other_way(machines):
    there = machines(malicious=True, policy="epsilon = 30.0\ndelta = 1e-3")
    example = {k: v for k, v in BY_SITE.items() if k not in ("accept_low_utility", "warmup_epochs")}
    example |= {"dp_unit": "example", "dp_steps": 2, "rounds": 1, "statistics_eps": 0.0}
    example |= {"models": "mlp"}
    costs = run_costs(resolve(Config.from_options(example)), SPEC)
    assert costs == (8.0, math.inf, 1e-5)
    list(there.coordinator(example).rounds())
    (there.folder / "policy.toml").write_text('epsilon = 100.0\ndelta = 1e-3\nunit = "client"')
    with pytest.raises(UserError):
        list(there.coordinator(BY_SITE | {"rounds": 1}).rounds())
    assert "bounds nothing about the site as a whole" in there.told[0]


BASES = (
    {},
    {"method": "codream-fast", "models": "linear"},
    {"dream_steps": 0},
    {"dp_eps": 8.0},
    {"dp_eps": 8.0, "statistics_eps": 0.0},
    {"dp_eps": 8.0, "dp_unit": "client", "threat_model": "malicious"},
    {"weights": "examples", "weight_cap": 100},
    {"secure": False, "dp_eps": 8.0},
    {"collaboration": False},
)
OTHER_WORDS = (0.25, 2.0, 3, True, False, 1)


def proposal(options):
    return proposed(wire.Hello(wire.VERSION, bytes(32), options, (1, 8, 8, 10)))


def other_value(setting, value):
    """Return a value that the option may have and that is not ``value``."""
    for one in (*setting.choices, *OTHER_WORDS):
        try:
            found = setting.checked(one)
        except UserError:
            continue
        if found not in (value, setting.default, 0):
            return found
    return not setting.default


def test_a_site_refuses_options_that_break_any_rule_alone():
    """The attack: class frequencies in answers, or a validation part, in a run with DP."""
    known, broken = {one.name: one for one in settings()}, set()
    for base in BASES:
        config = resolve(Config.from_options(base))
        options = config.options()
        for name in inapplicable(config):
            value = other_value(known[name], options[name])
            with pytest.raises(RequestRefused):
                proposal(options | {name: value})
        broken |= {rule for rule in _RULES if not rule.applies(config)}
    # A run with a common model cannot go over machines at all.
    apart = (WITHOUT_MESSENGER, (*MESSENGER_ONLY[1:], *WITHOUT_NOISE))
    assert broken == {rule for rule in _RULES if rule.names not in apart}


@pytest.mark.parametrize(
    ("name", "value"), [("norm", "auto"), ("models", "auto"), ("dream_lr", None)]
)
def test_a_site_fills_nothing_in_for_its_server(name, value):
    options = resolve(Config.from_options({"models": "resnet8"})).options()
    proposal(options)
    with pytest.raises(RequestRefused, match="is not what the run's settings resolve to"):
        proposal(options | {name: value})
    with pytest.raises(RequestRefused, match="is not what the run's settings resolve to"):
        proposal({k: v for k, v in options.items() if k != name})


@pytest.mark.parametrize("change", [{"prior_correction": 1.0}, {"validation": 0.5}])
def test_private_runs_take_no_class_frequencies_and_no_validation_part(change):
    options = resolve(Config.from_options({"dp_eps": 8.0})).options()
    with pytest.raises(RequestRefused, match="cannot be used with --dp-eps"):
        proposal(options | change)
