"""Who takes part in an aggregation, and which failures are simulated."""

from dataclasses import dataclass

import numpy as np

from codream_secure.runtime.seeds import derive_seed
from protocols.params import default_threshold
from protocols.phases import DropSchedule, Phase, ThreatModel, rounds
from protocols.policy import most_colluders

_OFFLINE = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSettings:
    """Who takes part and how failures are simulated.

    Args:
        roster: client ids, ascending.
        threshold: t; None stands for floor(2n/3) + 1.
        threat_model: whom the clients take the server for.
        rejoin: malicious model: whether a client that missed a step may be back in the next one.
        key_steps: M, the most steps that keys are made for in one exchange.
        expected_steps: how many steps the run plans; keys are not made for more.
        dropout: probability that a client fails in one step, and in one key exchange, each time
            at a uniform round.
        seed: of the dropouts.
    """

    roster: tuple[int, ...]
    threshold: int | None = None
    threat_model: ThreatModel = "semi-honest"
    rejoin: bool = False
    key_steps: int = 1
    expected_steps: int | None = None
    dropout: float = 0.0
    seed: int = 0

    @property
    def needed(self) -> int:
        """The threshold in force."""
        return default_threshold(len(self.roster)) if self.threshold is None else self.threshold

    def batch_steps(self, step: int) -> int:
        """Return M of a batch whose first step has this number; 0 if no such step is planned."""
        if self.expected_steps is None:
            return self.key_steps
        return max(0, min(self.key_steps, self.expected_steps - step))

    @property
    def online(self) -> tuple[Phase, ...]:
        """The rounds of one step."""
        return tuple(phase for phase in rounds(self.threat_model) if phase not in _OFFLINE)

    def step_drops(self, step: int) -> DropSchedule:
        """Return who fails when in protocol step ``step``."""
        return self._drops(self.online, "step", step)

    def key_drops(self, attempt: int) -> DropSchedule:
        """Return who fails when in key exchange number ``attempt`` of the run."""
        return self._drops(_OFFLINE, "keys", attempt)

    def _drops(self, phases: tuple[Phase, ...], *which: str | int) -> DropSchedule:
        draw = np.random.default_rng(derive_seed(self.seed, "dropout", *which))
        fails = draw.random(len(self.roster)) < self.dropout
        at = draw.integers(len(phases), size=len(self.roster))
        chosen = zip(self.roster, fails, at, strict=True)
        return DropSchedule({c: phases[index] for c, failed, index in chosen if failed})


def colluders(settings: AggregationSettings) -> int:
    """n_C of a run (D9); see `most_colluders`."""
    return most_colluders(len(settings.roster), settings.needed, settings.threat_model)
