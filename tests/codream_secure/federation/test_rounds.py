"""The loop over rounds, without anything to run."""

import itertools

import pytest

from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.federation.rounds import RoundLoop


class Counting(RoundLoop):
    """Writes down what happens."""

    def __init__(self, *, finished=0, last=None):
        super().__init__()
        self.ledger = ByteLedger((0,))
        self.log = []
        self._finished, self._last = finished, last

    @property
    def finished_rounds(self):
        return self._finished

    @property
    def last_round(self):
        return self._last

    def prepare(self):
        self.log.append("prepare")

    def round(self, number):
        self.log.append(number)
        self.ledger.record("broadcast", "down", number, client=0)
        return number * 10


def test_rounds_go_on_after_those_that_are_finished():
    loop = Counting(finished=2, last=4)
    assert list(loop.rounds()) == [30, 40]
    assert loop.log == ["prepare", 3, 4]
    assert set(loop.ledger.by_round()) == {3, 4}


def test_nothing_is_prepared_for_a_run_that_is_over():
    loop = Counting(finished=4, last=4)
    assert list(loop.rounds()) == []
    assert loop.log == []


def test_without_a_last_round_the_caller_stops_the_loop():
    loop = Counting()
    assert list(itertools.islice(loop.rounds(), 3)) == [10, 20, 30]
    assert loop.log == ["prepare", 1, 2, 3]


def test_hooks_are_called_in_order_before_the_round_is_handed_out():
    loop = Counting(last=2)
    loop.after_round += [lambda result: loop.log.append(("log", result)),
                         lambda result: loop.log.append(("checkpoint", result))]  # fmt: skip
    for result in loop.rounds():
        loop.log.append(("yield", result))
    per_round = ("log", "checkpoint", "yield")
    assert loop.log == [
        "prepare",
        1,
        *((what, 10) for what in per_round),
        2,
        *((what, 20) for what in per_round),
    ]


def test_a_hook_that_fails_ends_the_run():
    loop = Counting(last=2)

    def full(_):
        raise OSError("the disk is full")

    loop.after_round.append(full)
    with pytest.raises(OSError, match="full"):
        list(loop.rounds())
    assert loop.log == ["prepare", 1]
