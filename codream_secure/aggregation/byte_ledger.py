"""The byte ledger: sizes of all encoded messages, by round, phase, direction and client."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from codream_secure.storage.checkpoint import LedgerState
from protocols.phases import Phase

Direction = Literal["up", "down"]
ByPhase = dict[str, dict[str, int]]

# The order in which a report lists them. `consistency` is empty in the semi-honest model.
PHASES = (
    Phase.ADVERTISE_KEYS.value,
    Phase.SHARE_KEYS.value,
    "broadcast",
    Phase.MASKED_INPUT.value,
    Phase.CONSISTENCY.value,
    Phase.UNMASKING.value,
    "labels",
    "class_means",
)
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class ByteLedger:
    """Counts the bytes of encoded messages.

    ``broadcast`` holds messages to every client: requests for dreams and labels, models.
    ``labels`` holds masked labels (up) and summed labels (down), ``class_means`` masked class sums.
    The key phases and the unmasking of these aggregations count under their own phases.

    The *payload* of a message is the size of its numbers without any protocol, each in as many
    bits as one client's value needs. The rest is *overhead*: keys, shares, headers, and the bits
    that a sum needs and one value does not. *Avoidable* bytes were sent although the receiver had
    them or could have derived them.
    """

    def __init__(self, clients: Iterable[int]) -> None:
        self._rows = {client: row for row, client in enumerate(clients)}
        self._round = 0
        self._sizes: defaultdict[tuple[int, str, Direction], list[int]] = defaultdict(self._zeros)
        self._payload: defaultdict[Direction, int] = defaultdict(int)
        self._avoidable: defaultdict[tuple[str, Direction], int] = defaultdict(int)

    def _zeros(self) -> list[int]:
        return [0] * len(self._rows)

    def begin_round(self, number: int) -> None:
        """Count all later messages under this round; before the first round it is round 0."""
        self._round = number

    def record(
        self, phase: str, direction: Direction, size: int, *, client: int, payload: int = 0
    ) -> None:
        """Count one message from or to one client, in bytes.

        Raises:
            ValueError: there is no such phase, or the payload is larger than the message.
            KeyError: there is no such client.
        """
        if phase not in PHASES:
            raise ValueError(f"unknown phase {phase!r}")
        if not 0 <= payload <= size:
            raise ValueError(f"a payload of {payload} in a message of {size} bytes")
        self._sizes[self._round, phase, direction][self._rows[client]] += size
        self._payload[direction] += payload

    def count_avoidable(self, what: str, direction: Direction, size: int) -> None:
        """Count recorded bytes that the receiver had or could have derived; ``what`` says which."""
        if size:
            self._avoidable[what, direction] += size

    def by_phase(self) -> ByPhase:
        """Return bytes per client (mean over all clients, rounded) by phase and direction."""
        return self._table(None)

    def by_round(self) -> dict[int, ByPhase]:
        """Return the same for every round; round 0 holds messages sent before the first."""
        numbers = sorted({number for number, _, _ in self._sizes})
        return {number: self.of_round(number) for number in numbers}

    def of_round(self, number: int) -> ByPhase:
        """Return the same for one round; 0 everywhere if nothing was sent in it."""
        return self._table(number)

    def _table(self, number: int | None) -> ByPhase:
        table = {phase: dict.fromkeys(map(str, _DIRECTIONS), 0) for phase in PHASES}
        for (found, phase, direction), sizes in self._sizes.items():
            if number is None or found == number:
                table[phase][direction] += sum(sizes)
        clients = len(self._rows)
        return {p: {d: round(s / clients) for d, s in by.items()} for p, by in table.items()}

    def by_client(self) -> dict[int, dict[str, int]]:
        """Return every client's bytes by direction."""
        table = {client: dict.fromkeys(map(str, _DIRECTIONS), 0) for client in self._rows}
        for (_, _, direction), sizes in self._sizes.items():
            for client, row in self._rows.items():
                table[client][direction] += sizes[row]
        return table

    def per_client(self, direction: Direction) -> int:
        """Return the mean bytes of one client in one direction: the sum of `by_phase`."""
        return sum(phase[direction] for phase in self.by_phase().values())

    def overhead(self) -> dict[str, int]:
        """Return the bytes per client, by direction, that are not payload."""
        clients = len(self._rows)
        return {d: self.per_client(d) - round(self._payload[d] / clients) for d in _DIRECTIONS}

    def avoidable(self) -> dict[str, dict[str, int]]:
        """Return avoidable bytes per client, by reason and direction."""
        clients = len(self._rows)
        table: dict[str, dict[str, int]] = {}
        for (what, direction), size in sorted(self._avoidable.items()):
            empty = dict.fromkeys(map(str, _DIRECTIONS), 0)
            table.setdefault(what, empty)[direction] = round(size / clients)
        return table

    def state(self) -> LedgerState:
        """Return the ledger's part of a checkpoint."""
        return LedgerState(
            sizes=[(n, p, d, list(sizes)) for (n, p, d), sizes in self._sizes.items()],
            payload=dict(self._payload),
            avoidable=[(what, d, size) for (what, d), size in self._avoidable.items()],
        )

    def restore(self, state: LedgerState) -> None:
        """Restore the state that `state` returned.

        Raises:
            ValueError: the state belongs to other clients, or has an unknown phase.
        """
        for _, phase, _, sizes in state.sizes:
            if phase not in PHASES or len(sizes) != len(self._rows):
                raise ValueError("bytes of other phases or clients")
        self._sizes.update({(n, p, d): list(sizes) for n, p, d, sizes in state.sizes})
        self._payload.update(state.payload)
        self._avoidable.update({(what, d): size for what, d, size in state.avoidable})


def megabytes(by: Mapping[str, int]) -> float:
    """Return up and down together in megabytes (10^6 bytes)."""
    return (by["up"] + by["down"]) / 1e6
