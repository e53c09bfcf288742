"""Cohorts that differ by one site: what a site counts and refuses, and what remains (D1)."""

import numpy as np
import pytest
from machines import OPTIONS
from sum_sites import SumSites

from codream_secure.errors import RequestRefused
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
        rules(small_differences=1).admit(1, WITHOUT_4, ("dreams", near(3)))
    with pytest.raises(RequestRefused, match="for the 2th time"):
        rules(small_differences=1).admit(2, WITHOUT_4, ("dreams", PIXELS))


def walk(number):
    """Return the dreams of a step that moves on from `PIXELS`, by 2 root mean square each."""
    way = np.sign(np.random.default_rng(9).normal(size=PIXELS.size))
    return np.clip(128 + 2 * number * way, 0, 255).astype(np.uint8)


def test_a_dropout_counts_once_though_all_later_dreams_are_similar(rules):
    """Before, each later step counted: honest runs with one dropout used all ten up."""
    found = rules(small_differences=1)
    for step in range(12):
        found.admit(step, ALL if step < 6 else WITHOUT_4, ("dreams", walk(step)))
    assert found._known.differences == 1
    assert rules()._known.differences == 1


def test_a_server_that_goes_back_without_the_site_counts_each_time(rules):
    """The attack: every answer of a site that is out is asked for again, without the site."""
    found = rules(small_differences=3)
    for step in range(6):
        found.admit(step, ALL, ("dreams", walk(step)))
    for back in range(3):
        found.admit(6 + back, WITHOUT_4, ("dreams", walk(5 - back)))
    with pytest.raises(RequestRefused, match="for the 4th time"):
        found.admit(9, WITHOUT_4, ("dreams", walk(2)))


def test_each_answer_of_a_site_that_is_back_counts(rules):
    found = rules(rejoin=True, small_differences=2)
    found.admit(0, WITHOUT_4, ("dreams", walk(0)))
    found.admit(1, ALL, ("dreams", walk(1)))
    found.admit(2, ALL, ("dreams", walk(2)))
    with pytest.raises(RequestRefused, match="for the 3th time"):
        found.admit(3, ALL, ("dreams", walk(3)))


def test_a_step_is_added_to_the_record_which_is_not_written_again(rules, tmp_path):
    found, record = rules(), tmp_path / "site" / "cohorts"
    found.admit(0, ALL, ("dreams", PIXELS))
    first = record.read_bytes()
    found.admit(1, ALL, ("dreams", near(40)))
    assert record.read_bytes().startswith(first)
    assert len(record.read_bytes()) < 3 * len(first)
    for torn in (b"\0\0\1\0half of a step", b"\0" * 9):
        record.write_bytes(first + torn)
        again = rules()
        assert [s.step for s in again._known.sums] == [0]
        again.admit(5, WITHOUT_4, ("dreams", PIXELS))
        assert [s.step for s in rules()._known.sums] == [0, 5]


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


def test_sums_that_are_not_about_pixels_have_the_count_of_returns_alone(rules):
    """Models of `SecureGrid` are similar in every round; SECURITY says so."""
    found = rules(small_differences=0, returns=1)
    for step, cohort in enumerate((ALL, WITHOUT_4, ALL)):
        found.admit(step, cohort)
    found.admit(3, WITHOUT_4)
    with pytest.raises(RequestRefused, match="returns = 1"):
        found.admit(4, ALL)


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
