"""Seconds by activity: an inner activity pauses the outer one, and restarts add up."""

import pytest

from codream_secure.runtime import stopwatch
from codream_secure.runtime.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when it is told to."""
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_an_inner_activity_is_not_counted_twice(clock):
    watch = Stopwatch()
    clock[0] += 1
    with watch.measure("dreaming"):
        clock[0] += 2
        with watch.measure("secure_aggregation"):
            clock[0] += 4
        clock[0] += 8
    clock[0] += 16
    assert watch.seconds == {"dreaming": 10, "secure_aggregation": 4}
    assert (watch.busy, watch.total) == (14, 31)


def test_time_of_a_failed_activity_counts_and_the_outer_one_goes_on(clock):
    watch = Stopwatch()

    @watch.measure("dreaming")
    def fails():
        clock[0] += 3
        raise ValueError("lost")

    with watch.measure("acquisition"):
        with pytest.raises(ValueError, match="lost"):
            fails()
        clock[0] += 1
    assert watch.seconds == {"acquisition": 1, "dreaming": 3}


def test_independent_training_is_not_what_the_method_took(clock):
    watch = Stopwatch()
    for activity in ("independent", "acquisition"):
        with watch.measure(activity):
            clock[0] += 5
    assert watch.busy == 5


def test_seconds_of_earlier_processes_add_up(clock):
    first = Stopwatch()
    with first.measure("dreaming"):
        clock[0] += 7
    clock[0] += 1
    state = first.state()
    clock[0] += 1000
    second = Stopwatch()
    second.restore(state)
    with second.measure("dreaming"):
        clock[0] += 2
    assert second.seconds == {"dreaming": 9}
    assert second.total == 10
