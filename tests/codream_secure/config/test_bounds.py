"""Every number has bounds on both sides, of which the command line tells."""

import json
import math
from typing import get_type_hints

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec import inspect

import codream_secure as cs
from codream_secure.baselines.base import BaselineSettings
from codream_secure.cli.main import cli
from codream_secure.config.bounds import plain
from codream_secure.config.settings import Config, settings
from codream_secure.errors import UserError
from codream_secure.flower.node_config import site_settings
from codream_secure.sites.policy import SitePolicy
from protocols import secure_sum
from protocols.errors import ConfigError

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


@pytest.mark.parametrize(
    "words",
    [
        "privacy epsilon --noise-multiplier=nan --steps=1",
        "privacy epsilon --noise-multiplier=0.001 --steps=1",
        "privacy epsilon --noise-multiplier=1 --steps=10000001",
        "privacy epsilon --noise-multiplier=1 --steps=1 --delta=1",
        "privacy epsilon --noise-multiplier=1 --steps=1 --sampling-rate=0",
        "privacy noise --eps=1001 --steps=1",
        "privacy noise --eps=inf --steps=1",
        "privacy plan --clients=2 --dims=1",
        "privacy plan --clients=3 --dims=1e30",
        "privacy plan --clients=3 --dims=1 --agreement=1.1",
        "audit protocol --examples=0",
        "audit privacy --shadows=10001",
        "audit privacy --dp-eps=nan",
        "audit privacy --clients=16385",
        "compare --prox=-1",
        "compare --fed-lr=101",
        "compare --target=nan",
        "deploy keys --client=16384",
        "deploy local --timeout=1e300",
        "simulate --checkpoint-every=10000001",
    ],
)
def test_numbers_of_every_command_have_bounds_on_both_sides(words):
    """Nothing is computed: the line says what the number must be."""
    found = CliRunner().invoke(cli, words.split())
    if isinstance(found.exception, UserError):
        assert " must be " in str(found.exception)
    else:
        assert (found.exit_code, "is not a valid integer" in found.output) == (2, True)


def test_bounds_are_plain_numbers():
    assert [plain(x) for x in (1e7, 1e12, 0.01, 1e-6, 100, 2**63 - 1, 0.5)] == [
        "10000000",
        "1000000000000",
        "0.01",
        "0.000001",
        "100",
        "9223372036854775807",
        "0.5",
    ]
    for one in settings():
        assert "e+" not in one.bounds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("local_epochs", 0),
        ("learning_rate", 1e38),
        ("momentum", 1.0),
        ("prox", math.nan),
        ("mrl_width", 10**9),
        ("kd_energy_last", 0.0),
        ("tgp_margin", -1.0),
        ("moon_temperature", 1e200),
    ],
)
def test_numbers_of_baselines_have_bounds(name, value):
    with pytest.raises(UserError, match=f"{name} must be"):
        BaselineSettings(**{name: value})


@pytest.mark.parametrize("value", [0, 10**8, 1.5, "x"])
def test_numbers_of_the_library_have_bounds(value):
    with pytest.raises(UserError, match="checkpoint_every must be"):
        cs.simulate("digits", checkpoint_every=value)


@pytest.mark.parametrize(
    "given",
    [
        {"bits": 2.5},
        {"bits": 25},
        {"threshold": 2.0},
        {"threshold": 4},
        {"clip": math.inf},
        {"clip": "1"},
        {"clip": 0.0},
        {"vectors": {c: [[1], [1, 2]] for c in range(3)}},
    ],
)
def test_numbers_of_a_secure_sum_have_bounds(given):
    vectors = {client: np.ones(2) for client in range(3)}
    with pytest.raises(ConfigError):
        secure_sum(**{"vectors": vectors, "clip": 1.0, **given})


@pytest.mark.parametrize("value", ["-1", "16384", "one", "1.5"])
def test_the_number_of_a_site_has_bounds(tmp_path, value):
    with pytest.raises(UserError, match=r"client=.* from 0 to 16383"):
        site_settings({"client": value, "state": str(tmp_path), "data": "digits"})


ENDS = [
    "privacy epsilon --noise-multiplier=0.01 --steps=10000000",
    "privacy epsilon --noise-multiplier=0.01 --steps=10000000 --sampling-rate=0.5",
    "privacy epsilon --noise-multiplier=1000000 --steps=1 --sampling-rate=1e-300 --delta=1e-300",
    "privacy noise --eps=1000 --steps=10000000",
    "privacy noise --eps=0.000001 --steps=1",
    "privacy plan --clients=16384 --dims=1000000000000 --releases=10000000 --eps=1000",
    "privacy plan --clients=3 --dims=1 --eps=0.000001 --agreement=1e-300",
]


@pytest.mark.parametrize(
    "words", [*ENDS[:2], *(pytest.param(x, marks=pytest.mark.slow) for x in ENDS[2:])]
)
def test_both_ends_can_be_computed(words):
    """A result, or one line that says why there is none."""
    found = CliRunner().invoke(cli, [*words.split(), "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.output, parse_constant=pytest.fail)
    assert told


POLICY = {
    field: found
    for field, allowed in get_type_hints(SitePolicy, include_extras=True).items()
    if isinstance(found := inspect.type_info(allowed), inspect.IntType | inspect.FloatType)
}


@pytest.mark.parametrize("name", POLICY)
def test_numbers_of_a_policy_have_bounds_on_both_sides_and_reach_them(name):
    found = POLICY[name]
    # With the other end of a pair at its own bound, so that something lies between them.
    other = {"min": "max", "max": "min"}.get(name[:3], "")
    widest = {}
    if pair := POLICY.get(f"{other}{name[3:]}"):
        widest[f"{other}{name[3:]}"] = pair.le if other == "max" else (pair.ge or 1e-300)
    low = found.ge if found.ge is not None else 1e-300
    high = found.le if found.le is not None else 1 - 1e-12
    for value in (low, high):
        kept = SitePolicy.of({**widest, name: value})
        assert getattr(kept, name) == value
    for value in (low - 1, high + 1, math.nan if isinstance(found, inspect.FloatType) else 0.5):
        with pytest.raises(UserError, match=name):
            SitePolicy.of({**widest, name: value})


@pytest.mark.parametrize("client", [0, 16383])
def test_both_ends_of_a_site_s_number_make_keys(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["deploy", "keys", "--client", str(client), "--out", str(tmp_path / "keys")]
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 0, found.output


TINY = "--clients=3 --samples-per-client=20 --rounds=1 --dreams=4 --models=linear --quiet"


@pytest.mark.parametrize(
    "words",
    [
        f"compare {TINY} --methods=fedprox --fed-lr=100 --prox=1000000 --trials=1 --fed-epochs=1",
        pytest.param(
            f"compare {TINY} --methods=fedprox --fed-lr=1e-300 --prox=0 --trials=5 --fed-epochs=1",
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(
                f"audit privacy --clients=3 --shadows=4 --only=membership --dp-eps={end}",
                marks=pytest.mark.slow,
            )
            for end in ("1000", "0.000001")
        ),
        pytest.param("audit protocol --examples=1", marks=pytest.mark.slow),
    ],
)
def test_both_ends_of_commands_that_train_end_well(words, run, tmp_path):
    where = ("--out", tmp_path / "o") if words.startswith("compare") else ()
    code, _, err = run(*words.split(), *where)
    assert code in (0, 2, 3), err
    assert code != 2 or err.count("error: ") == 1
