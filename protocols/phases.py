"""The rounds of the protocol, by name (SPEC 6). Both roles and every message refer to these."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

ThreatModel = Literal["semi-honest", "malicious"]


class Phase(enum.StrEnum):
    """The rounds in order (SPEC 6). `round_phases` says which of them one aggregation has."""

    ADVERTISE_KEYS = "advertise_keys"
    DRAW_GRAPH = "draw_graph"
    SHARE_KEYS = "share_keys"
    MASKED_INPUT = "masked_input"
    CONSISTENCY = "consistency"
    UNMASKING = "unmasking"


# Bundles are opened after round 1, and may be answered with a report. No round ends with it.
OPEN_BUNDLES: Final = "open_bundles"

Stage = Phase | Literal["open_bundles"]
"""Everything that a client is asked: the rounds, and the opening of bundles."""


def phase_of(stage: Stage) -> Phase:
    """Return the round that a stage is counted under."""
    return Phase.SHARE_KEYS if stage == OPEN_BUNDLES else Phase(stage)


def round_phases(threat_model: ThreatModel, *, ring: bool = False) -> tuple[Phase, ...]:
    """Return the rounds of one aggregation, in order (SPEC 6).

    Only the malicious model has the consistency round. Only the ring is drawn.
    """
    optional = {Phase.CONSISTENCY: threat_model == "malicious", Phase.DRAW_GRAPH: ring}
    return tuple(phase for phase in Phase if optional.get(phase, True))


@dataclass(frozen=True, slots=True)
class DropSchedule:
    """Client -> the phase whose message it no longer sends; nothing comes from it afterwards.

    A phase that the run does not have stands for the next one.
    """

    drops: Mapping[int, Phase] = field(default_factory=dict)

    def silent(self, client: int, phase: Phase) -> bool:
        """Tell whether the client has fallen silent by this phase."""
        phases = list(Phase)
        return client in self.drops and phases.index(self.drops[client]) <= phases.index(phase)

    def beside(self) -> DropSchedule:
        """Return the same silence for offline messages that travel with a step's (SPEC 6.2).

        Keys travel with masked inputs, nonces or bundles with the answers of the last round.
        """
        keys, rest = Phase.ADVERTISE_KEYS, Phase.DRAW_GRAPH
        missed = {u: keys if self.silent(u, Phase.MASKED_INPUT) else rest for u in self.drops}
        return DropSchedule(missed)


NO_DROPS: Final = DropSchedule()
