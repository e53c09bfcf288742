"""The live display of a run, on stderr so that stdout stays clean."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from codream_secure.report.text import percent, size
from codream_secure.runs.formats import Row


class LiveProgress:
    """Shows one bar for what goes on now. Use as a context."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<40}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,  # a log has lines: `RoundLines`
        )
        self._task = self._bars.add_task("setting up", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, activity: str, total: int) -> None:
        """Replace the bar by one for ``activity``."""
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task(activity, total=total)

    def advance(self) -> None:
        """Move the bar by one."""
        self._bars.advance(self._task)


class RoundLines:
    """Says a line a round where no bar is shown: in a file, a pipe or a batch system.

    Args:
        console: of standard error; on a terminal nothing is said, since bars are there.
        done, rounds: rounds that were finished before, and all rounds of the run.
    """

    def __init__(self, console: Console, done: int, rounds: int) -> None:
        self._console, self._rounds = console, rounds
        self._first, self._began = done, time.monotonic()

    def begin(self, clients: int) -> None:
        """Say what begins."""
        left = self._rounds - self._first
        self._say(f"{clients} clients, {left} of {self._rounds} rounds to do")

    def __call__(self, row: Row) -> None:
        """Say how a round ended: accuracies, bytes of a client, epsilon, time."""
        passed = time.monotonic() - self._began
        left = passed / (row.round - self._first) * (self._rounds - row.round)
        mean = sum(row.clients) / len(row.clients) if row.clients else None
        told = [
            f"round {row.round} of {self._rounds}: clients {percent(mean)}",
            f"server {percent(row.server)}",
            f"{size(row.bytes_up)} up and {size(row.bytes_down)} down per client",
            *([] if row.epsilon is None else [f"epsilon {row.epsilon:.3g}"]),
            f"{passed:.0f} s, about {left:.0f} s left",
        ]
        self._say(", ".join(told))

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line)
            self._console.file.flush()
