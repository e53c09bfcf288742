"""Charts are SVG whose coordinates are the figures of the runs."""

import re

import pytest

from codream_secure.report.charts import over_bytes, over_epsilon, over_rounds
from codream_secure.report.groups import group
from codream_secure.runs.reading import read_all


@pytest.fixture
def groups(write_run):
    """Return a function that writes runs and groups them."""

    def build(*runs):
        return group(read_all([write_run(f"run{i}", **run) for i, run in enumerate(runs)]))

    return build


def lines(chart):
    """Return the points of every curve with markers, in the picture's units."""
    paths = re.findall(r'<path d="(M [^"]*)" clip-path="[^"]*" style="fill: none', chart.svg)
    found = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", path) for path in paths]
    return [[(float(x), float(y)) for x, y in points] for points in found if len(points) > 2]


def test_points_lie_as_far_apart_as_the_figures(groups):
    chart = over_rounds(groups({"top": 0.9}))
    ((a, b, c),) = lines(chart)
    # Accuracies of 0.3, 0.6 and 0.9 after rounds 1, 2 and 3; y grows downwards.
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.01)
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.01)
    assert a[1] > c[1]
    assert [key.label for key in chart.legend] == ["CoDream"]


def test_a_single_group_also_shows_training_alone(groups):
    chart = over_rounds(groups({"top": 0.9, "independent": 0.5}))
    ours, alone = lines(chart)
    assert [key.label for key in chart.legend] == ["CoDream", "training alone"]
    assert len({y for _, y in alone}) == 1
    assert ours[0][1] > alone[0][1] > ours[-1][1]  # from 0.3 over 0.5 to 0.9


def test_methods_have_their_own_colour_and_shape(groups):
    chart = over_rounds(groups({}, {"method": "fedavg-secure"}, {"method": "scaffold"}))
    assert len(lines(chart)) == 3
    assert len({key.colour for key in chart.legend}) == 3
    assert len({key.glyph for key in chart.legend}) == 3


def test_bytes_are_on_a_log_axis_and_who_sends_nothing_is_a_level_line(groups):
    chart = over_bytes(groups({"sent": 900}, {"method": "independent", "sent": 0, "top": 0.5}))
    ((a, b, c),) = lines(chart)
    # 900, 1800 and 2700 bytes: distances like log 2 and log 1.5.
    assert (b[0] - a[0]) / (c[0] - b[0]) == pytest.approx(0.6931 / 0.4055, rel=0.01)
    assert [key.label for key in chart.legend][1].endswith("(sends nothing)")


def test_epsilon_is_drawn_for_private_runs_only(groups):
    chart = over_epsilon(groups({"epsilon": 4.0}, {"method": "fedavg"}))
    assert [key.label for key in chart.legend] == ["CoDream", "FedAvg (no privacy)"]


def test_nothing_is_drawn_where_nothing_is_sent_or_private(groups):
    found = groups({"method": "independent", "sent": 0})
    assert over_bytes(found) is None
    assert over_epsilon(found) is None


def test_no_text_of_a_run_stands_in_the_picture(groups):
    chart = over_rounds(groups({"config": {"partition": "<x>"}}, {"config": {"partition": "y"}}))
    assert "&lt;x&gt;" not in chart.svg
    assert "<x>" not in chart.svg
    assert "<x>" in chart.legend[0].label
