"""A row of the paper's tables: what is run, what is read off it, and the paper's own figure."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.paper.printed import Printed
from benchmarks.paper.scales import Options
from benchmarks.shared.federations import Outcome, baseline_cell, dream
from benchmarks.shared.grid import Cell, Grid
from codream_secure.compare.plan import cost_of
from codream_secure.config.methods import parse_method
from codream_secure.runs.commands import command_line

MEASURED = "measured"
_LONGEST_ERROR = 60


@dataclass(frozen=True)
class Column:
    """One figure of a row; that of another ``method`` takes that method's own run."""

    name: str
    reads: Callable[[Outcome], float | None]
    method: str = ""


@dataclass(frozen=True)
class Row:
    """One run, once a seed.

    Attributes:
        labels: what the row is called, by heading.
        options: of the run, without its seed.
        printed: the paper's figures by column.
        note: what a reader must know of this row.
    """

    labels: Mapping[str, str]
    options: Options
    printed: Mapping[str, Printed] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Artefact:
    """A table or a figure of the paper.

    Attributes:
        name: as in ``--only``.
        title: what it shows.
        notes: what differs from the paper's.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that its rows are compared with."""
        return tuple(column.method for column in self.columns if column.method)


@dataclass(frozen=True)
class Figure:
    """One figure beside the paper's.

    Attributes:
        status: MEASURED, or what failed.
        values: fractions 0..1, one a seed that has one.
        printed: what the paper prints, in percent.
    """

    status: str
    values: tuple[float, ...] = ()
    printed: Printed | None = None

    @property
    def ours(self) -> str:
        """Mean in percent, with the standard deviation over seeds where there are several."""
        if self.status != MEASURED:
            return self.status
        if not self.values:
            return "-"
        mean = f"{100 * statistics.mean(self.values):.1f}"
        if len(self.values) == 1:
            return mean
        return f"{mean} ± {100 * statistics.stdev(self.values):.1f}"

    @property
    def theirs(self) -> str:
        """What the paper prints."""
        if self.printed is None:
            return "paper -"
        spread = "" if self.printed.spread is None else f" ± {self.printed.spread:.1f}"
        return f"paper {self.printed.value:.1f}{spread}"

    def as_json(self) -> dict[str, Any]:
        """Return the figure in JSON's own types, in percent."""
        values = [round(100 * value, 2) for value in self.values]
        whole = self.status == MEASURED and bool(values)
        return {
            "status": self.status,
            "mean": round(statistics.mean(values), 2) if whole else None,
            "spread": round(statistics.stdev(values), 2) if whole and len(values) > 1 else None,
            "values": values,
            "paper": self.printed.value if self.printed else None,
            "paper_spread": self.printed.spread if self.printed else None,
        }


@dataclass(frozen=True)
class Line:
    """A row with its runs, one cell a seed, and those of the methods it is compared with."""

    row: Row
    runs: tuple[Cell[Outcome], ...]
    others: Mapping[str, tuple[Cell[Outcome], ...]] = field(default_factory=dict)

    def spent(self, clock: str) -> float:
        """Return the ``seconds`` or ``cpu_seconds`` of all its runs."""
        cells = [cell for some in (self.runs, *self.others.values()) for cell in some]
        return float(round(sum(getattr(cell, clock) for cell in cells), 1))

    @property
    def commands(self) -> list[str]:
        """What makes it: one command a seed, and one more where there are other methods."""
        found = [command_line("simulate", cell.settings) for cell in self.runs]
        if self.others:
            found += [comparison(cell.settings, tuple(self.others)) for cell in self.runs]
        return found

    def figure(self, column: Column) -> Figure:
        """Return one figure of the row."""
        cells = self.others[column.method] if column.method else self.runs
        read = [column.reads(cell.result) for cell in cells if cell.result]
        values = tuple(value for value in read if value is not None)
        printed = self.row.printed.get(column.name)
        errors = [cell.error for cell in cells if cell.error]
        if errors:
            seeds = f" ({len(errors)} of {len(cells)} seeds)" if len(cells) > 1 else ""
            return Figure(f"failed: {errors[0][:_LONGEST_ERROR]}{seeds}", values, printed)
        return Figure(MEASURED, values, printed)

    def as_json(self, artefact: Artefact) -> dict[str, Any]:
        """Return the row in JSON's own types; a run that failed has zeros."""
        found = [cell.result for cell in self.runs]
        sizes = [one.summary.bytes if one else None for one in found]
        return {
            "artefact": artefact.name,
            "labels": dict(self.row.labels),
            "cells": {column.name: self.figure(column).as_json() for column in artefact.columns},
            "secure": masked(self.row.options),
            "reported_rounds": [one.reported.round if one else 0 for one in found],
            "kB_up": [round(size.per_client_up / 1000, 1) if size else 0 for size in sizes],
            "kB_down": [round(size.per_client_down / 1000, 1) if size else 0 for size in sizes],
            "seconds": self.spent("seconds"),
            "cpu_seconds": self.spent("cpu_seconds"),
            "errors": [cell.error for cell in self.runs],
            "note": self.row.note,
            "commands": self.commands,
        }


def masked(options: Options) -> bool:
    """Return whether a run with these options sends sums under masks."""
    return bool(options.get("secure", True)) and bool(options.get("collaboration", True))


def comparison(options: Options, methods: Sequence[str]) -> str:
    """Return the command line that compares a run with other methods at equal computation."""
    own = str(options.get("method", "codream"))
    given = {name: v for name, v in options.items() if name not in ("method", "seed")}
    named = {"methods": ",".join([own, *methods]), "trials": 1, "seeds": options["seed"]}
    return command_line("compare", {**named, **given})


def run_line(row: Row, methods: Sequence[str], grid: Grid, seeds: Sequence[int]) -> Line:
    """Run a row once a seed, and after it the other methods on the same data and seed.

    Each of them takes as many of a client's forward and backward passes as CoDream took. Where
    CoDream failed they are not run: its error is theirs.
    """
    runs, others = [], []
    for seed in seeds:
        options = {**row.options, "seed": seed}
        run = grid.cell("codream", options, partial(dream, options), Outcome)
        runs.append(run)
        others.append([_other(grid, method, run) for method in methods])
    by_method = zip(methods, zip(*others, strict=True), strict=True) if methods else ()
    return Line(row, tuple(runs), dict(by_method))


def _other(grid: Grid, method: str, run: Cell[Outcome]) -> Cell[Outcome]:
    if run.result is None:
        return run
    iterations = run.result.summary.iterations
    budget = cost_of("iterations", {"iterations": iterations}, parse_method(method))
    return baseline_cell(grid, run.settings, method, budget)
