"""The live display of a run, on stderr so that stdout stays clean."""

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
