"""The loop over the rounds of a run, and the hooks by which others follow it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import count
from typing import Generic, Protocol, TypeVar

from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.runtime.parallel import one_core_each

_Result = TypeVar("_Result")


class Progress(Protocol):
    """The hook for what happens inside a round: a progress bar."""

    def start(self, activity: str, total: int) -> None:
        """Begin an activity of ``total`` steps; it replaces the one before."""

    def advance(self) -> None:
        """Finish one step of the activity."""


class NoProgress:
    """Shows nothing."""

    def start(self, activity: str, total: int) -> None:
        """Do nothing."""

    def advance(self) -> None:
        """Do nothing."""


class RoundLoop(ABC, Generic[_Result]):
    """Runs round after round. CoDream, the baselines and the coordinator of sites are such loops.

    Attributes:
        ledger: counts the bytes of encoded messages by round.
        after_round: the hooks for logging and checkpoints. Each is called, in order, with the
            result of a round before the next round begins; an exception ends the run.
    """

    ledger: ByteLedger

    def __init__(self) -> None:
        self.after_round: list[Callable[[_Result], None]] = []

    def rounds(self) -> Iterator[_Result]:
        """Run the rounds that are left and yield the result of each."""
        first, last = self.finished_rounds + 1, self.last_round
        if last is not None and first > last:
            return
        with one_core_each():
            self.prepare()
            for number in count(first):
                self.ledger.begin_round(number)
                result = self.round(number)
                for hook in self.after_round:
                    hook(result)
                yield result
                if number == last:
                    return

    @property
    @abstractmethod
    def finished_rounds(self) -> int:
        """Rounds that are finished, those of interrupted processes included."""

    @property
    @abstractmethod
    def last_round(self) -> int | None:
        """The number of the last round; None: the caller stops the loop."""

    @abstractmethod
    def prepare(self) -> None:
        """Do what comes before the first round of this process."""

    @abstractmethod
    def round(self, number: int) -> _Result:
        """Run round ``number``, counted from 1."""
