"""What a server's journal holds: which run it is, the state between rounds, and every step."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.byte_ledger import Direction
from codream_secure.sites.peers import Traffic
from codream_secure.sites.wire import Listed
from codream_secure.storage.checkpoint import GroupState, LearnerState, LedgerState, Pair
from protocols.phases import Phase

FORMAT = 3


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which run it is: stored before the first message, and compared after a restart.

    Attributes:
        session: 32 public bytes.
        options: resolved settings.
        identities: Ed25519 public keys in roster order, in the malicious model.
        spec: channels, height, width and classes of the data.
        scaling: mean and standard deviation of pixels by channel.
        share: examples of a site if they were dealt evenly.
        evaluates: whether sites are asked for accuracies.
    """

    session: bytes
    options: dict[str, int | float | str | bool | None]
    identities: tuple[bytes, ...]
    spec: tuple[int, int, int, int]
    scaling: tuple[tuple[float, ...], tuple[float, ...]]
    share: int
    evaluates: bool
    format: int = FORMAT


class RoundState(msgspec.Struct, frozen=True, kw_only=True):
    """A finished round without its dreams; see `coordinator.Round`."""

    number: int
    digest: str
    server: float | None
    learned: int
    sites: tuple[float, int] | None


class ServerState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of the server between two rounds.

    Attributes:
        rounds: finished rounds.
        dreams: labelled batches of the last round: pixels and targets.
        student: the server's student.
        group: dream buffer and counters; keys of the protocol are never stored.
        next_step: the next step of the protocol; records of earlier steps are obsolete.
        sums: how many sums were begun, evaluations included.
        record: the items of the session's record, in order; lessons are encoded messages.
        ledger: bytes by client and phase.
        traffic: what the transport really carried.
    """

    format: int
    rounds: list[RoundState]
    dreams: list[Pair]
    student: LearnerState
    group: GroupState
    next_step: int
    sums: int
    record: list[Listed | bytes]
    ledger: LedgerState
    traffic: Traffic


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the protocol.

    Attributes:
        broadcast: SHA-256 digest of the request.
        totals: sums by section, uint32, little-endian; None: the step was aborted, or a crash cut
            it off.
        count: sites in the sum.
        messages: phase, direction, site and bytes of every message, as the ledger counts them.
        traffic: what the transport had carried by then.
        listed: the step in the session's record; None: it was not over.
    """

    broadcast: bytes
    totals: dict[str, bytes] | None = None
    count: int = 0
    messages: list[tuple[Phase, Direction, int, int]] = msgspec.field(default_factory=list)
    traffic: Traffic = msgspec.field(default_factory=Traffic)
    listed: Listed | None = None

    def sums(self) -> dict[str, NDArray[np.uint32]] | None:
        """Return the sums by section, uint32; None: the step has none."""
        if self.totals is None:
            return None
        found = {name: np.frombuffer(data, "<u4") for name, data in self.totals.items()}
        return {name: values.astype(np.uint32) for name, values in found.items()}
