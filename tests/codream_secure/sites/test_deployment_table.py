"""Every line of docs/deployment.md's table of settings that protect less, played by a server."""

import re
from pathlib import Path

import pytest
from machines import OPTIONS, PRIVATE

from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.sites import wire

ROOT = Path(__file__).parents[3]
HERE = "tests/codream_secure/sites/"
PRIVATE = {k: v for k, v in PRIVATE.items() if k != "seed"}
BY_SITE = {k: v for k, v in OPTIONS.items() if k not in ("seed", "validation", "models")}
BY_SITE |= {"models": "linear", "dp_eps": 8.0, "dp_unit": "client", "accept_low_utility": True}
EPSILON = "epsilon = 10.0\ndelta = 1e-3"
# By how the line begins: the site's policy, the run's options, and how the site refuses.
LINES = {
    "the malicious model": ("", OPTIONS | {"threat_model": "semi-honest"}, "not set up for the"),
    "exactly the public keys": ("", OPTIONS | {"clients": 5, "threshold": 4}, "roster"),
    "a threshold that bears": ("", OPTIONS | {"threshold": 2}, "too low"),
    "a sparse graph that bears": (
        "colluders = 1",
        OPTIONS | {"graph": "chosen", "graph_corrupt": 0.0, "graph_silent": 0.0},
        "made for 0 colluders of 4, and this site counts on up to 1",
    ),
    "sums over at least": ("min_cohort = 4", OPTIONS, "min_cohort = 4"),
    "cohorts that only shrink": ("", OPTIONS | {"rejoin": True}, "does not allow rejoining"),
    "differential privacy": (EPSILON, PRIVATE | {"seed": 3}, "with a seed"),
    "a budget that all runs": (EPSILON, PRIVATE | {"dp_eps": 11.0}, "it allows 10"),
    "privacy of the site": (f'{EPSILON}\nunit = "client"', PRIVATE, "--dp-unit client"),
    "class means": (EPSILON, PRIVATE | {"noise_colluders": 0}, "noise for 0 colluders"),
    "labels with the site": ("", BY_SITE | {"noise_colluders": 0}, "noise for 0 colluders"),
    "clients that count equally": (
        "max_weight_cap = 0",
        OPTIONS | {"weights": "examples", "weight_cap": 30},
        "max_weight_cap = 0",
    ),
    "numbers in ordinary ranges": ("", OPTIONS | {"learning_rate": 0.5}, "max_learning_rate"),
    "models that the site": ("models = ['mlp']", OPTIONS, "list models"),
    "one session more": ("sessions_total = 0", OPTIONS, "sessions_total = 0"),
}
# Played in a step, by the tests of these files.
ELSEWHERE = {
    "cohorts that grow again": "test_cohorts.py::test_a_cohort_grows_again_so_often",
    "sums over cohorts": "test_cohorts.py::test_similar_pixels_with_one_site_less_are_refused",
    "the kinds of sums": "test_policy.py::test_every_bound_is_a_refusal",
}


def lines():
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    table = text.partition("| a run that asks for less than |")[2].partition("\n\n")[0]
    return re.findall(r"^\| ([a-z].*?) \|", table, re.MULTILINE)


def test_every_line_of_the_table_is_played():
    begins = [*LINES, *ELSEWHERE]
    found = [[begin for begin in begins if line.startswith(begin)] for line in lines()]
    assert all(len(one) == 1 for one in found), found
    assert len(found) == len(begins)
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / HERE / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("line", LINES)
def test_a_site_refuses_a_run_that_protects_less(machines, line):
    policy, options, told = LINES[line]
    there = machines(malicious=True, policy=policy)
    options = resolve(Config.from_options({"threat_model": "malicious", **options})).options()
    hello = wire.Hello(wire.VERSION, bytes(32), options, (1, 8, 8, 10), there.roster, bytes(32))
    answer = wire.decode_answer(there.carry({0: wire.encode(hello)})[0])
    assert told in answer.refused
    assert not (there.folder / "site-0" / "session").exists()
