"""The byte ledger: what was really encoded and sent, by phase, direction and client."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from protocols.params import Phase

Direction = Literal["up", "down"]

# The order in which a report lists them. `consistency` is empty in the semi-honest model.
PHASES = (
    Phase.ADVERTISE_KEYS.value,
    Phase.SHARE_KEYS.value,
    "broadcast",
    Phase.MASKED_INPUT.value,
    Phase.CONSISTENCY.value,
    Phase.UNMASKING.value,
    "labels",
)


class ByteLedger:
    """Counts encoded messages.

    ``broadcast`` holds dream and label requests going down, ``labels`` the masked labels going
    up and the summed labels coming down; the key phases and unmasking of a label aggregation
    count under their own phases.
    """

    def __init__(self, clients: Iterable[int]) -> None:
        self._clients = tuple(clients)
        self._bytes: defaultdict[tuple[str, Direction], int] = defaultdict(int)

    def record(self, phase: str, direction: Direction, size: int) -> None:
        """Count one message of ``size`` bytes from or to one client."""
        if phase not in PHASES:
            raise ValueError(f"unknown phase {phase!r}")
        self._bytes[phase, direction] += size

    def by_phase(self) -> dict[str, dict[str, int]]:
        """Return bytes per client (mean over all clients, rounded) by phase and direction."""
        return {
            phase: {
                direction: round(self._bytes[phase, direction] / len(self._clients))
                for direction in ("up", "down")
            }
            for phase in PHASES
        }

    def per_client(self, direction: Direction) -> int:
        """Return the mean bytes of one client in one direction: the sum of `by_phase`."""
        return sum(phase[direction] for phase in self.by_phase().values())

    def state(self) -> dict[str, dict[str, int]]:
        """Return bytes of all clients together by phase and direction, for a checkpoint."""
        return {p: {d: self._bytes[p, d] for d in get_args(Direction)} for p in PHASES}

    def restore(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Go on counting.

        Raises:
            KeyError: a phase or direction is missing.
        """
        for phase in PHASES:
            for direction in get_args(Direction):
                self._bytes[phase, direction] = state[phase][direction]
