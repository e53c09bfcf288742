"""Counts how much a participant computes, so that methods can be compared at equal work."""

from dataclasses import dataclass

# The backward pass costs about twice the forward pass, so forward alone is a third of both.
FORWARD_SHARE = 1 / 3


@dataclass(slots=True)
class Work:
    """Number of examples that passed through models; dreams count like local examples.

    Attributes:
        trained: examples with a forward and a backward pass.
        inferred: examples with a forward pass only.
    """

    trained: int = 0
    inferred: int = 0

    def iterations(self, batch: int) -> float:
        """Return the work as a number of training steps on ``batch`` examples each."""
        return (self.trained + FORWARD_SHARE * self.inferred) / batch
