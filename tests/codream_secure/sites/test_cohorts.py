"""Cohorts that differ by one site: what a site counts and refuses, and what remains (D1)."""

import itertools

import numpy as np
import pytest
from machines import OPTIONS
from sum_sites import SumSites

from codream_secure.aggregation.requests import DreamRequest
from codream_secure.config.settings import Config
from codream_secure.errors import RequestRefused
from codream_secure.federation.client import Client
from codream_secure.federation.simulation import Simulation
from codream_secure.sites import cohorts, site_log, wire
from codream_secure.sites.policy import SitePolicy
from codream_secure.sites.session import Terms
from codream_secure.storage.state_folder import StateFolder
from protocols.errors import NotEnoughSurvivors
from protocols.messages import encode_set

SITES = 5
DRAW = np.random.default_rng(5)
PIXELS = DRAW.integers(0, 256, 4096, dtype=np.uint8)


def near(distance):
    """Return pixels whose root mean square distance from `PIXELS` is about this."""
    moved = PIXELS + DRAW.normal(0, distance, PIXELS.size)
    return np.clip(np.round(moved), 0, 255).astype(np.uint8)


def members(*sites):
    return encode_set(sites, tuple(range(SITES)))


ALL, WITHOUT_4, WITHOUT_3_4 = members(*range(5)), members(0, 1, 2, 3), members(0, 1, 2)


@pytest.fixture
def rules(tmp_path):
    folder = StateFolder(tmp_path / "site")

    def build(model="malicious", *, rejoin=False, **policy):
        terms = Terms(SITES, 4, model, 2, 4, rejoin, ("dreams",))
        return cohorts.CohortRules(folder, SitePolicy(**policy), terms)

    yield build
    folder.close()


@pytest.mark.parametrize(
    ("pixels", "kind", "cohort", "refused"),
    [
        (PIXELS, "dreams", WITHOUT_4, True),
        (near(3), "dreams", WITHOUT_4, True),
        (np.append(PIXELS, PIXELS[:64]), "dreams", WITHOUT_4, True),
        (near(40), "dreams", WITHOUT_4, False),
        (PIXELS, "labels", WITHOUT_4, False),
        (PIXELS, "dreams", ALL, False),
        (PIXELS, "dreams", WITHOUT_3_4, False),
    ],
    ids=["equal", "near", "one dream more", "far", "another kind", "same cohort", "two fewer"],
)
def test_similar_pixels_with_one_site_less_are_refused(rules, pixels, kind, cohort, refused):
    found = rules(small_differences=0, similar_pixels=8.0)
    found.admit(0, ALL, ("dreams", PIXELS))
    if refused:
        with pytest.raises(RequestRefused, match="small_differences = 0"):
            found.admit(1, cohort, (kind, pixels))
    else:
        found.admit(1, cohort, (kind, pixels))


def test_so_many_are_allowed_over_restarts_and_a_repetition_counts_once(rules):
    rules(small_differences=1).admit(0, ALL, ("dreams", PIXELS))
    for _ in range(2):
        rules(small_differences=1).admit(1, WITHOUT_4, ("dreams", PIXELS))
    with pytest.raises(RequestRefused, match="for the 2th time"):
        rules(small_differences=1).admit(2, WITHOUT_4, ("dreams", near(3)))


def test_a_dropout_is_seen_before_the_survivors_are_signed(rules):
    found = rules(small_differences=0)
    found.admit(0, ALL, ("dreams", PIXELS))
    found.admit(1, ALL, ("dreams", near(3)))
    with pytest.raises(RequestRefused, match="small_differences"):
        found.confirm(WITHOUT_4)


def test_a_cohort_grows_again_so_often(rules):
    """Two sums, with one site and without it, need that it comes back: with new keys it can."""
    found = rules(returns=1)
    for step, cohort in enumerate((ALL, WITHOUT_4, ALL, WITHOUT_4)):
        found.admit(step, cohort)
    with pytest.raises(RequestRefused, match="returns = 1"):
        found.admit(4, ALL)
    rules(rejoin=True, returns=1).admit(4, ALL)


def test_in_the_semi_honest_model_both_are_counted_only(rules):
    found = rules("semi-honest", returns=0, small_differences=0)
    for step, cohort in enumerate((ALL, WITHOUT_4, ALL)):
        found.admit(step, cohort, ("dreams", PIXELS))
    assert (found._known.returns, found._known.differences) == (1, 2)


def test_the_record_tells_of_cohorts_that_a_site_was_not_in(rules):
    found = rules(returns=0)
    found.admit(0, ALL)
    found.follow([wire.Entry(1, bytes(32), survivors=WITHOUT_4)])
    with pytest.raises(RequestRefused, match="returns = 0"):
        found.admit(2, ALL)


def test_a_server_that_makes_keys_for_one_step_takes_nobody_out_and_back(tmp_path):
    """The attack: batches of one step. The rule on cohorts within a batch says nothing there."""
    there = SumSites(tmp_path / "sites", SITES, rejoin=False, key_steps=1, policy="returns = 1")
    sums = []
    for number in range(5):
        away = number % 2
        there.fault = lambda site, m, away=away: (
            "before" if away and site == 4 and not isinstance(m, wire.Begin) else None
        )
        try:
            sums.append(len(there.sum(f"step {number}".encode())[1]))
        except NotEnoughSurvivors:
            sums.append(0)
    assert sums == [5, 4, 5, 4, 0]
    assert all("returns = 1" in reason for reason in there.server.sites.refused.values())


def test_the_operator_reads_how_often(machines):
    there = machines(malicious=True, policy="similar_pixels = 90.0")
    there.fault = lambda _n, site, m: (
        "before" if site == 3 and isinstance(m, wire.Ask) and m.step == 2 else None
    )
    options = {**OPTIONS, "rounds": 1, "models": "linear", "threat_model": "malicious"}
    list(there.coordinator(options).rounds())
    (line,) = [n for n in site_log.lines(there.folder / "site-0") if "similar dreams" in n]
    counted = int(line.split(": ")[1].split(";")[0])
    assert counted >= 1


def test_what_remains_is_bounded_by_noise_alone(monkeypatch):
    """Differences of sums tell one client's gradient: exactly at equal dreams, much at others.

    SECURITY prints these figures.
    """
    seen, original = {}, Client.compute

    def compute(self, request, broadcast, step):
        found = original(self, request, broadcast, step)
        if isinstance(request, DreamRequest):
            codes = found["gradient"].astype(float)
            real = (2 * codes / ((1 << request.bits) - 1) - 1) * request.clip
            seen.setdefault(request.dream_step, {})[id(self)] = real
        return found

    monkeypatch.setattr(Client, "compute", compute)
    config = Config.from_options({**LEAK, "seed": 0})
    list(Simulation(config, compare_independent=False).rounds())
    same, neighbours = [], []
    steps = sorted(seen)
    for first, second in itertools.pairwise(steps):
        everybody, later = seen[first], seen[second]
        victim = next(iter(everybody))
        total = sum(everybody.values())
        others = [sum(g for c, g in one.items() if c != victim) for one in (everybody, later)]
        found = [np.corrcoef(total - rest, everybody[victim])[0, 1] for rest in others]
        same.append(found[0])
        neighbours.append(found[1])
    assert min(same) > 0.9999
    assert np.median(neighbours) == pytest.approx(0.6, abs=0.2)


LEAK = {
    "clients": 10,
    "rounds": 1,
    "dreams": 16,
    "dream_steps": 8,
    "models": "lenet5",
    "samples_per_client": 50,
    "warmup_epochs": 5,
    "kd_epochs": 1,
}
