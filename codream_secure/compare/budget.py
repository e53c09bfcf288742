"""What a run may spend, and how it stops before it would spend more."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from codream_secure.baselines.methods import Method
from codream_secure.baselines.run import BaselineRun
from codream_secure.compare.plan import Match
from codream_secure.observer import Measurement
from codream_secure.simulation import Simulation

Run = Simulation | BaselineRun

MAX_ROUNDS = 1000
# A last round that would overshoot the budget by no more than this is still run.
_SLACK = 0.02
# What these send is nothing, so that bytes cannot be matched: their computation is.
_SILENT = ("independent", "centralized")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend: ``rounds``, ``iterations``, ``seconds`` or ``bytes``."""

    kind: Match
    amount: float

    def spent(self, run: Run) -> float:
        """Return what a run has spent so far."""
        if self.kind == "rounds":
            return len(run.observer.history)
        if self.kind == "iterations":
            return run.iterations
        if self.kind == "seconds":
            return run.stopwatch.busy
        return run.ledger.per_client("up") + run.ledger.per_client("down")

    def limited(self, run: Run) -> Iterator[Measurement]:
        """Yield rounds as long as the next is likely to fit, at least one."""
        before = self.spent(run)
        for measurement in run.rounds():
            yield measurement
            now = self.spent(run)
            fits = 2 * now - before <= self.amount * (1 + _SLACK)
            if not fits or len(run.observer.history) >= MAX_ROUNDS:
                return
            before = now


def cost_of(match: Match, costs: Mapping[str, Any], method: Method) -> Budget:
    """Return the budget of a method from what the reference has spent, by kind of cost."""
    if match == "bytes" and method.family in _SILENT:
        match = "iterations"
    return Budget(match, costs[match])
