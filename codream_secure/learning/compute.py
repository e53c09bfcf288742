"""How much a participant has computed, so that methods can be compared at equal work."""

from dataclasses import dataclass

# A forward pass costs about a third of a forward and a backward pass.
FORWARD_SHARE = 1 / 3


@dataclass(slots=True)
class Work:
    """Examples, local ones and dreams alike, that went through models.

    Attributes:
        trained: forward and backward.
        inferred: forward alone.
    """

    trained: int = 0
    inferred: int = 0

    def iterations(self, batch: int) -> float:
        """Return the work in forward and backward passes over ``batch`` examples."""
        return (self.trained + FORWARD_SHARE * self.inferred) / batch
