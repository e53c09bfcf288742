"""Measure wall time by activity, for the report; nested activities are not counted twice."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from codream_secure.storage.checkpoint import StopwatchState


class Stopwatch:
    """Adds up seconds per activity; an inner activity pauses the outer one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._start = self._since = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the stopwatch was made, plus those of earlier processes."""
        return time.perf_counter() - self._start

    @property
    def busy(self) -> float:
        """Seconds of all activities except independent training, which only serves to compare."""
        return sum(s for activity, s in self.seconds.items() if activity != "independent")

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Add the time spent inside the block to ``activity``."""
        self._charge()
        self._stack.append(activity)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def state(self) -> StopwatchState:
        """Return the seconds so far, for a checkpoint."""
        return StopwatchState(total=self.total, seconds=dict(self.seconds))

    def restore(self, state: StopwatchState) -> None:
        """Add the seconds that `state` returned in an earlier process."""
        self._start -= state.total
        for activity, seconds in state.seconds.items():
            self.seconds[activity] += seconds
