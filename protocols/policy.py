"""The bounds that a client sets itself, whatever the server proposes (SPEC 2.4)."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.errors import PolicyError
from protocols.graph_parameters import log2_split
from protocols.params import MAX_INPUT, MAX_LENGTH, MAX_STEPS, MIN_CLIENTS, BatchParams, Task
from protocols.phases import ThreatModel
from protocols.quantization import CLIP_MAX, CLIP_MIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The bounds of one client. Its owner sets them.

    The client checks them before it draws or uses a secret, so a refused proposal costs nothing
    and reveals nothing.

    Args:
        min_clients: the smallest |U1|, the number of share holders.
        colluders: n_C, clients that may be on the server's side until the shares are erased.
        min_honest: the fewest honest inputs of a sum; t - n_C must not be below it. With 1 the
            server and its clients could learn a single honest input.
        malicious: whether the client refuses a batch of the semi-honest model. It does by default:
            otherwise the server could choose the model without signatures.
        max_steps: the largest M, steps that one batch of keys is made for.
        max_input: the largest maximum of a section.
        max_length: the largest number of entries in all sections together.
        min_clip: the smallest clip of a section.
        max_clip: the largest clip of a section.
        kinds: the kinds of sums that are allowed; None allows all.
        first_step: the smallest step number. Steps below it have been answered before.
        sigma: on the graph that clients choose, a part of them can be summed alone with a
            probability of at most 2^-sigma a batch, with n_C corrupt clients (SPEC 8.8).
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
    sigma: int = 40

    def check_batch(self, batch: BatchParams) -> None:
        """Check the parameters that are known before keys are made.

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
        if batch.chosen is not None:
            k, t = batch.chosen.degree, batch.chosen.threshold
            if log2_split(batch.n, self.colluders, k, t) > -self.sigma:
                raise PolicyError(f"{k} chosen, {t} needed: too few against {self.colluders}")

    def check_members(self, batch: BatchParams, members: int) -> None:
        """Check |U1|, the number of clients that hold shares.

        This stops a server that tells two groups different survivor sets. Each set needs t
        signatures, at least t - n_C of them from honest clients, and no honest client signs two
        sets. So two sets need 2(t - n_C) <= |U1| - n_C, which 2t > |U1| + n_C rules out (SPEC 1.6).

        Raises:
            PolicyError: a bound does not hold.
        """
        if members < self.min_clients:
            raise PolicyError(f"{members} clients share, {self.min_clients} needed")
        if 2 * batch.threshold <= members + self.colluders:
            raise PolicyError("threshold is too low for so many clients")

    def check_task(self, task: Task) -> None:
        """Check the task of one step, which is known with its broadcast.

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
    """Return the largest n_C, clients that may be on the server's side (SPEC 1.2, 1.6).

    Malicious model: the largest n_C with 2t > n + n_C and at least two honest inputs in every sum.
    Semi-honest model: t - 1, because t colluders could rebuild every seed.
    """
    malicious = min(2 * threshold - n - 1, threshold - 2)
    return malicious if threat_model == "malicious" else threshold - 1
