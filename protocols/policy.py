"""What a client agrees to, whatever the server proposes (SPEC 2.4)."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.errors import PolicyError
from protocols.params import MAX_INPUT, MAX_LENGTH, MAX_STEPS, MIN_CLIENTS, BatchParams, Task
from protocols.phases import ThreatModel
from protocols.quantization import CLIP_MAX, CLIP_MIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds of one client, set by its owner and checked before anything secret is drawn.

    Args:
        min_clients: fewest share holders, |U1|.
        colluders: n_C, how many clients may be on the server's side until the shares are erased.
        min_honest: fewest honest inputs in a sum; t - n_C is at least that.
        malicious: whether a semi-honest batch is refused.
        max_steps: most steps that keys are made for ahead.
        max_input: largest input of a section.
        max_length: most numbers in all sections together.
        min_clip: smallest clip of a section.
        max_clip: largest clip of a section.
        kinds: what may be summed; None allows everything.
        first_step: smallest step number; those below have been answered before.
        rejoin: whether a client that missed a step may be back in the next one of the batch.
    """

    min_clients: int = MIN_CLIENTS
    colluders: int = 0
    min_honest: int = 2
    malicious: bool = True
    max_steps: int = MAX_STEPS
    max_input: int = MAX_INPUT
    max_length: int = MAX_LENGTH
    min_clip: float = CLIP_MIN
    max_clip: float = CLIP_MAX
    kinds: frozenset[str] | None = None
    first_step: int = 0
    rejoin: bool = False

    def check_batch(self, batch: BatchParams) -> None:
        """Check what is known before the keys.

        Raises:
            PolicyError: a bound does not hold.
        """
        if self.malicious and not batch.malicious:
            raise PolicyError("the batch is not run in the malicious model")
        if batch.steps > self.max_steps:
            raise PolicyError(f"{batch.steps} steps in one batch, {self.max_steps} allowed")
        if batch.threshold - self.colluders < self.min_honest:
            raise PolicyError("threshold leaves too few honest clients in a sum")
        if batch.n < self.min_clients:
            raise PolicyError(f"{batch.n} clients, {self.min_clients} needed")

    def check_members(self, batch: BatchParams, members: int) -> None:
        """Check the number of share holders, |U1|.

        Two different survivor sets need t signatures each, of which at least t - n_C are honest,
        and nobody honest signs twice: 2(t - n_C) <= |U1| - n_C is what must not hold (SPEC 2.4).

        Raises:
            PolicyError: a bound does not hold.
        """
        if members < self.min_clients:
            raise PolicyError(f"{members} clients share, {self.min_clients} needed")
        if 2 * batch.threshold <= members + self.colluders:
            raise PolicyError("threshold is too low for so many clients")

    def check_task(self, task: Task) -> None:
        """Check what is known with the broadcast.

        Raises:
            PolicyError: a bound does not hold.
        """
        if task.step < self.first_step:
            raise PolicyError(f"step {task.step} is below {self.first_step}")
        if self.kinds is not None and task.kind not in self.kinds:
            raise PolicyError(f"sums of kind {task.kind!r} are not allowed")
        if sum(section.length for section in task.sections) > self.max_length:
            raise PolicyError("too many numbers")
        for section in task.sections:
            if section.maximum > self.max_input:
                raise PolicyError(f"section {section.name!r}: inputs too large")
            if not self.min_clip <= section.clip <= self.max_clip:
                raise PolicyError(f"section {section.name!r}: clip out of range")


def most_colluders(n: int, threshold: int, threat_model: ThreatModel) -> int:
    """n_C: how many clients may be on the server's side (SPEC 1.2, 1.6).

    Malicious model: 2t > n + n_C, and at least two honest inputs are in every sum.
    """
    malicious = min(2 * threshold - n - 1, threshold - 2)
    return malicious if threat_model == "malicious" else threshold - 1
