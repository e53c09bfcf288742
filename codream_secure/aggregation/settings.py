"""Settings of an aggregation: roster, threshold, threat model and simulated failures."""

from dataclasses import dataclass

import numpy as np

from codream_secure.aggregation.graph import COMPLETE, MaskGraph
from codream_secure.runtime.seeds import derive_seed
from protocols.params import default_threshold
from protocols.phases import DropSchedule, Phase, ThreatModel, round_phases
from protocols.policy import most_colluders

_OFFLINE = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSettings:
    """Who takes part in an aggregation, and which failures are simulated.

    Args:
        roster: client ids, ascending.
        threshold: t; None means floor(2n/3) + 1.
        threat_model: the server that clients protect themselves against.
        rejoin: malicious model: whether a client that missed a step may take part in the next.
        key_steps: M, the largest number of steps that one key exchange serves.
        expected_steps: number of steps that the run plans; no keys are made for more. None: open.
        dropout: probability, 0..1, that a client fails in a step, and likewise in a key exchange;
            the round in which it fails is uniform.
        seed: of the dropouts.
        graph: who masks with whom.
    """

    roster: tuple[int, ...]
    threshold: int | None = None
    threat_model: ThreatModel = "semi-honest"
    rejoin: bool = False
    key_steps: int = 1
    expected_steps: int | None = None
    dropout: float = 0.0
    seed: int = 0
    graph: MaskGraph = COMPLETE

    @property
    def needed(self) -> int:
        """The threshold t, with its default filled in."""
        return default_threshold(len(self.roster)) if self.threshold is None else self.threshold

    def batch_steps(self, step: int) -> int:
        """Return M of a key batch that starts at ``step``; 0 if no such step is planned."""
        if self.expected_steps is None:
            return self.key_steps
        return max(0, min(self.key_steps, self.expected_steps - step))

    @property
    def online(self) -> tuple[Phase, ...]:
        """The rounds of one step."""
        return tuple(phase for phase in round_phases(self.threat_model) if phase not in _OFFLINE)

    def step_drops(self, step: int) -> DropSchedule:
        """Return which clients fail in step ``step``, and in which round."""
        return self._drops(self.online, "step", step)

    def key_drops(self, attempt: int) -> DropSchedule:
        """Return which clients fail in key exchange ``attempt`` of the run, and in which round."""
        return self._drops(_OFFLINE, "keys", attempt)

    def _drops(self, phases: tuple[Phase, ...], *which: str | int) -> DropSchedule:
        draw = np.random.default_rng(derive_seed(self.seed, "dropout", *which))
        fails = draw.random(len(self.roster)) < self.dropout
        at = draw.integers(len(phases), size=len(self.roster))
        chosen = zip(self.roster, fails, at, strict=True)
        return DropSchedule({c: phases[index] for c, failed, index in chosen if failed})


def colluders(settings: AggregationSettings) -> int:
    """Return n_C, the number of clients that may collude with the server (D9).

    A sparse graph bears as many as it was made for.
    """
    most = most_colluders(len(settings.roster), settings.needed, settings.threat_model)
    sparse = settings.graph.sparse
    return most if sparse is None else min(most, sparse.corrupt)
