"""The contents of compare.json: a `ComparisonResult`."""

from typing import Literal

from codream_secure.runs.formats import Record

Match = Literal["rounds", "iterations", "seconds", "bytes"]


class PlanRecord(Record, frozen=True):
    """What a comparison was begun with; see `compare.plan.Plan`."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    options: dict[str, bool | int | float | str | None]
    settings: dict[str, int | float | bool | str]
    match: Match
    trials: int
    target: float | None


class Trial(Record, frozen=True, omit_defaults=True):
    """One step size that was tried: accuracy on validation, and what the trial cost."""

    factor: float
    validation: float
    iterations: float | None = None
    seconds: float | None = None
    bytes: float | None = None


class Figures(Record, frozen=True):
    """What a comparison's table shows of a cell, or the means of that over seeds.

    Attributes:
        accuracy: after the last round, of the one model for all or the clients' mean.
        accuracy_validated: the same after the round that validation chose; None under DP.
        personal: mean over clients of the accuracy on their own mix of classes, after the last
            round; never in one column with ``accuracy``.
        largest_class: what predicting each client's largest class reaches there.
        single_owner_classes: classes of one owner, whose row a sum over owners tells.
        bytes_to_target: bytes up and down until the target accuracy; None if it was not reached.
    """

    accuracy: float
    accuracy_validated: float | None
    clients_std: float | None
    server: float | None
    personal: float | None
    largest_class: float | None
    single_owner_classes: float | None
    bytes_up: float
    bytes_down: float
    bytes_to_target: float | None
    rounds: float
    round_trips: float | None
    epsilon: float | None
    iterations: float
    seconds: float


class Means(Figures, frozen=True):
    """Means over the ``seeds`` that did not fail; ``accuracy_spread`` is half their range."""

    accuracy_spread: float
    seeds: int


class Cell(Record, frozen=True):
    """One run of a comparison: its folder, and figures or the reason why there are none."""

    folder: str
    failed: str | None
    figures: Figures | None


class MethodRow(Record, frozen=True):
    """All cells of a method, by seed; ``mean`` is None if all of them failed."""

    method: str
    cells: dict[int, Cell]
    mean: Means | None


class ComparisonResult(Record, frozen=True):
    """The file compare.json; ``rows`` is empty until the comparison has ended."""

    format: int
    plan: PlanRecord
    reference: str
    tuning: dict[str, list[Trial]]
    rows: tuple[MethodRow, ...]
