"""The plan of a comparison: methods, seeds, settings, and the cost that all may spend equally."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import msgspec

from codream_secure.baselines.base import BaselineSettings
from codream_secure.config.combinations import (
    FAST_ONLY,
    MESSENGER_ONLY,
    PIXELS_ONLY,
    WITHOUT_MESSENGER,
    inapplicable,
)
from codream_secure.config.methods import Method, parse_method
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.federation.observer import Measurement
from codream_secure.federation.run import Run
from codream_secure.runs.comparison_format import Match, PlanRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared.

    Args:
        methods: names (`config.methods`).
        seeds: one run of each method is made with each.
        options: settings of `simulate`, by flat name.
        settings: of the baselines.
        match: the cost that all methods may spend equally.
        trials: step sizes to try on validation, each for a quarter of the rounds; 1 tries none.
        target: accuracy, 0 to 1; the table says after how many bytes a method reached it.

    Raises:
        UserError: a method is unknown or repeated, or a setting applies to none of them.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, object]
    settings: BaselineSettings
    match: Match = "iterations"
    trials: int = 1
    target: float | None = None

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise UserError("--methods must name every method once, and at least one")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError("--seeds must name every seed once, and at least one")
        useless: set[str] | None = None
        for name in self.methods:
            unused = self._unused(parse_method(name))
            useless = unused if useless is None else useless & unused
        if useless:
            option = "--" + min(useless).replace("_", "-")
            raise UserError(f"{option} means nothing to any of {', '.join(self.methods)}")

    def config(self, method: Method, seed: int) -> Resolved:
        """Return the resolved settings of one cell."""
        return resolve(Config.from_options(self._options(method, seed)))

    def _options(self, method: Method, seed: int) -> dict[str, object]:
        unused = self._unused(method)
        options = {name: value for name, value in self.options.items() if name not in unused}
        chosen = self.settings.messenger
        if method.family == "codream-messenger" and (
            options.get("dp_eps") is None or chosen != BaselineSettings().messenger
        ):  # under DP its own default is smaller
            options["messenger"] = chosen
        return options | _of(method) | {"seed": seed}

    def _unused(self, method: Method) -> set[str]:
        """Return the given settings that apply to other methods but not to this one."""
        own = {"method": method.family} if method.family.startswith("codream-") else {}
        asked = Config.from_options({**self.options, **own})
        some = {*FAST_ONLY, *PIXELS_ONLY, *MESSENGER_ONLY}
        if method.family == "codream-messenger":
            some.update(WITHOUT_MESSENGER)
        return set(inapplicable(asked)) & set(self.options) & some

    @property
    def reference(self) -> str:
        """The method whose cost sets the budget of all others: the first that dreams."""
        dreaming = [name for name in self.methods if parse_method(name).dreams]
        return (dreaming or list(self.methods))[0]

    def record(self) -> PlanRecord:
        """Return the plan as compare.json holds it."""
        return msgspec.convert(dataclasses.asdict(self), PlanRecord)


def _of(method: Method) -> dict[str, object]:
    """Return the settings that follow from the name of a method."""
    if method.family == "fedmd":
        # Public noise that is labelled and learned from: dreams without dreaming.
        return {"method": "codream", "dream_steps": 0, "adaptive": "none"}
    return {"method": method.family} if method.dreams else {"method": "codream"}


def as_match(name: str) -> Match:
    """Return the match that a word names.

    Raises:
        UserError: there is none of this name.
    """
    for kind in get_args(Match):
        if kind == name:
            return kind  # type: ignore[no-any-return]
    raise UserError(f"match must be one of {', '.join(get_args(Match))}, not {name!r}")


MAX_ROUNDS = 1000


# The last round may exceed the budget by this fraction.
_SLACK = 0.02


# These send nothing. Where bytes are matched, they may compute as much as the reference instead.
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
        """Run and yield at least one round, then as many as fit if each costs what the last did."""
        before = self.spent(run)
        run.budget_spent = before / self.amount
        for measurement in run.rounds():
            yield measurement
            now = self.spent(run)
            fits = 2 * now - before <= self.amount * (1 + _SLACK)
            if not fits or len(run.observer.history) >= MAX_ROUNDS:
                return
            before, run.budget_spent = now, now / self.amount


def cost_of(match: Match, costs: Mapping[Match, float], method: Method) -> Budget:
    """Return the budget of a method.

    Args:
        match: the cost that all methods may spend equally.
        costs: what the reference spent, by kind.
        method: that gets the budget.
    """
    if match == "bytes" and method.family in _SILENT:
        match = "iterations"
    return Budget(match, costs[match])
