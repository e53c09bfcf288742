"""When answers leave: at a pace that does not follow the computation."""

import pytest
from sum_sites import SumSites

from codream_secure.sites import pace, wire
from codream_secure.sites.pace import Pace
from codream_secure.sites.policy import FILE
from codream_secure.sites.site import Site


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch):
        self.now, self.slept = 100.0, []
        monkeypatch.setattr(pace, "_now", lambda: self.now)
        monkeypatch.setattr(pace, "_sleep", self.sleep)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(
    ("every", "took", "leaves"),
    [(1.0, 0.01, 1.0), (1.0, 0.99, 1.0), (1.0, 1.25, 2.0), (2.5, 6.0, 7.5), (0.0, 0.3, 0.3)],
)
def test_an_answer_leaves_at_the_next_multiple(monkeypatch, every, took, leaves):
    clock = Clock(monkeypatch)
    keeper = Pace(every)
    began = keeper.began()
    clock.now += took
    keeper.wait(began)
    assert clock.now - began == pytest.approx(leaves)


def test_every_answer_over_machines_keeps_the_pace_refusals_too(tmp_path, monkeypatch):
    there, clock = SumSites(tmp_path / "sites"), Clock(monkeypatch)
    (there.folder / FILE).write_text("answer_every = 5.0")
    for body in (
        wire.encode(wire.Who(wire.VERSION, bytes(32), bytes(32))),
        wire.encode(wire.End()),
        b"no message",
    ):
        with Site(there.settings(0)) as site:
            site.handle_bytes(body)
    assert clock.slept == [5.0, 5.0, 5.0]


def test_in_a_simulation_and_in_memory_nobody_waits(tmp_path, monkeypatch):
    there, clock = SumSites(tmp_path / "sites"), Clock(monkeypatch)
    there.sum(b"first")
    assert clock.slept == []
