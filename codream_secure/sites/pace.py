"""When an answer leaves a site: how long its computation took tells of its data."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Answers leave at the next multiple of so many seconds after the message came.

    Args:
        every: seconds; 0: at once.
    """

    every: float

    def began(self) -> float:
        """Return the moment at which a message came, in seconds."""
        return _now()

    def wait(self, began: float) -> None:
        """Wait until an answer to a message may leave.

        Args:
            began: what `began` returned.
        """
        if self.every > 0:
            _sleep(self.every - (_now() - began) % self.every)


def _now() -> float:
    return time.monotonic()


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
