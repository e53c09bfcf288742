"""A `Progress` that tells a function how far each activity is."""

from collections.abc import Callable

from codream_secure.federation.rounds import NoProgress, Progress

OnStep = Callable[[str, int, int], None]
"""Gets an activity, how many of its steps are done, and how many it has."""


class Steps:
    """Tells a function of every step.

    Args:
        tell: the function.
    """

    def __init__(self, tell: OnStep) -> None:
        self._tell = tell
        self._activity, self._done, self._total = "", 0, 0

    def start(self, activity: str, total: int) -> None:
        """Tell that an activity begins."""
        self._activity, self._done, self._total = activity, 0, total
        self._tell(activity, 0, total)

    def advance(self) -> None:
        """Tell that one more of its steps is done."""
        self._done += 1
        self._tell(self._activity, self._done, self._total)


def progress_of(on_step: OnStep | None) -> Progress:
    """Return what tells a function, or nobody."""
    return NoProgress() if on_step is None else Steps(on_step)
