"""Runs that differ only in their seed are one group; curves are means over seeds."""

import pytest

from codream_secure.report.groups import differing, group
from codream_secure.runs.reading import read_all


@pytest.fixture
def groups(write_run):
    """Return a function that writes runs and groups them."""

    def build(*runs):
        return group(read_all([write_run(f"run{i}", **run) for i, run in enumerate(runs)]))

    return build


def test_seeds_of_the_same_settings_are_one_group(groups):
    (one,) = groups({"seed": 2, "top": 0.8}, {"seed": 1, "top": 0.6})
    assert [run.seed for run in one.runs] == [1, 2]
    assert one.label == "CoDream"
    assert one.mean(lambda run: run.accuracy) == pytest.approx(0.7)
    assert one.figures(lambda run: run.accuracy) == pytest.approx([0.6, 0.8])


def test_a_label_names_what_tells_groups_of_a_method_apart(groups):
    found = groups(
        {"config": {"partition": "iid"}},
        {"config": {"partition": "shards:2"}},
        {"method": "fedavg-secure"},
    )
    assert [one.label for one in found] == [
        "CoDream (partition iid)",
        "CoDream (partition shards:2)",
        "FedAvg-secure",
    ]
    assert differing(found) == {"CoDream": ["partition"]}


def test_circumstances_tell_no_groups_apart(groups):
    places = ({"config": {"device": device}, "seed": i} for i, device in enumerate(("cpu", "cuda")))
    assert len(groups(*places)) == 1


def test_a_curve_has_the_rounds_that_all_seeds_have_reached(groups, tmp_path):
    (one,) = groups({"seed": 0, "top": 0.6}, {"seed": 1, "top": 0.9})
    assert len(one.curve(lambda row: row.round, lambda row: row.accuracy)) == 3
    path = tmp_path / "run1/metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    (one,) = group(read_all([tmp_path / "run0", tmp_path / "run1"]))
    points = one.curve(lambda row: row.round, lambda row: row.accuracy)
    assert [point.x for point in points] == [1, 2]


def test_points_are_means_with_their_range(groups):
    (one,) = groups({"seed": 0, "top": 0.6}, {"seed": 1, "top": 0.9})
    points = one.curve(lambda row: row.bytes_both, lambda row: row.accuracy)
    assert [point.x for point in points] == [999, 1999, 3000]
    last = points[-1]
    assert (last.y, last.low, last.high) == pytest.approx((0.75, 0.6, 0.9))


def test_bytes_by_phase_are_means_over_seeds(groups):
    (one,) = groups({"seed": 0, "sent": 1000}, {"seed": 1, "sent": 3000})
    assert one.phases() == {"broadcast": (0, 4000), "masked_input": (2000, 0)}
