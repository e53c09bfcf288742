"""How the paper's tables are printed: terminal, JSON, a Markdown page, and pictures."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.paper.cells import Artefact, Column, Printed, Row
from benchmarks.paper.runs import Run, command, comparison

MEASURED = "measured"
_LONGEST_ERROR = 60


@dataclass(frozen=True)
class Cell:
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
        """Return the cell in JSON's own types; all figures in percent."""
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
    """A row with its runs, one a seed, and the methods that it is compared with."""

    row: Row
    runs: tuple[Run, ...]
    methods: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Wall time of all its runs."""
        return round(sum(run.seconds for run in self.runs), 1)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all its runs."""
        return round(sum(run.cpu_seconds for run in self.runs), 1)

    @property
    def commands(self) -> list[str]:
        """What makes it: one command a seed, and one more where there are other methods."""
        found = [command(run.options) for run in self.runs]
        if self.methods:
            found += [comparison(run.options, self.methods) for run in self.runs]
        return found

    def cell(self, column: Column) -> Cell:
        """Return one figure of the row."""
        printed = self.row.printed.get(column.name)
        read = [column.reads(run) for run in self.runs if not run.error]
        values = tuple(value for value in read if value is not None)
        why = [run.error or run.failures.get(column.method, "") for run in self.runs]
        errors = [error for error in why if error]
        if errors:
            seeds = f" ({len(errors)} of {len(self.runs)} seeds)" if len(self.runs) > 1 else ""
            return Cell(f"failed: {errors[0][:_LONGEST_ERROR]}{seeds}", values, printed)
        return Cell(MEASURED, values, printed)

    def as_json(self, artefact: Artefact) -> dict[str, Any]:
        """Return the row in JSON's own types."""
        return {
            "artefact": artefact.name,
            "labels": dict(self.row.labels),
            "cells": {column.name: self.cell(column).as_json() for column in artefact.columns},
            "secure": masked(self.row.options),
            "reported_rounds": [run.reported_round for run in self.runs],
            "kB_up": [round(run.bytes_up / 1000, 1) for run in self.runs],
            "kB_down": [round(run.bytes_down / 1000, 1) for run in self.runs],
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "errors": [run.error for run in self.runs],
            "note": self.row.note,
            "commands": self.commands,
        }


@dataclass(frozen=True)
class Page:
    """A finished table or figure."""

    artefact: Artefact
    lines: tuple[Line, ...]

    @property
    def seconds(self) -> float:
        """Wall time of all its runs, those shared with other artefacts or kept included."""
        return round(sum(line.seconds for line in self.lines), 1)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the same."""
        return round(sum(line.cpu_seconds for line in self.lines), 1)

    @property
    def spent(self) -> str:
        """Say how long it took."""
        return f"{self.seconds:.0f} s, {self.cpu_seconds:.0f} s of CPU time"

    @property
    def headings(self) -> list[str]:
        """Names of the columns, labels first."""
        labels = list(self.artefact.rows[0].labels)
        return ["row", *labels, *(column.name for column in self.artefact.columns)]

    def cells(self) -> list[list[str]]:
        """Return the table's text, ours above the paper's, if it has any in that column."""
        printed = {name for line in self.lines for name in line.row.printed}
        return [
            [str(number), *line.row.labels.values(), *self._figures(line, printed)]
            for number, line in enumerate(self.lines, start=1)
        ]

    def _figures(self, line: Line, printed: Collection[str]) -> list[str]:
        cells = {column.name: line.cell(column) for column in self.artefact.columns}
        return [
            f"{cell.ours}\n{cell.theirs}" if name in printed else cell.ours
            for name, cell in cells.items()
        ]

    def remarks(self) -> list[str]:
        """Return the notes of rows, numbered as in the table, and then the table's own."""
        numbered = [
            f"row {number}: {line.row.note}"
            for number, line in enumerate(self.lines, start=1)
            if line.row.note
        ]
        return [*numbered, *self.artefact.notes]


def masked(options: Mapping[str, object]) -> bool:
    """Return whether a run with these options sends sums under masks."""
    return bool(options.get("secure", True)) and bool(options.get("collaboration", True))


# Terminal ----------------------------------------------------------------------------------------


def show(console: Console, page: Page, label: str) -> None:
    """Print one table with its notes and commands, and ``label`` beside its title."""
    title = Text(f"\n{page.artefact.title} ({label})", style="bold")
    console.print(title)
    table = Table(*page.headings, show_lines=True)
    for cells in page.cells():
        table.add_row(*cells)
    console.print(table)
    commands = [
        Text(f"row {number}: {text}")
        for number, line in enumerate(page.lines, start=1)
        for text in line.commands
    ]
    console.print(Group(*map(Text, page.remarks()), *commands), soft_wrap=True)
    console.print(page.spent, highlight=False)


# Markdown ----------------------------------------------------------------------------------------


def markdown(
    pages: Sequence[Page],
    *,
    label: str,
    notes: Sequence[str],
    facts: Mapping[str, str],
    pictures: Mapping[str, str],
) -> str:
    """Return the page.

    Args:
        pages: in order.
        label: the scale in words, beside every title.
        notes: what holds of everything.
        facts: command, date, machine, versions.
        pictures: file name by artefact.
    """
    parts = [f"# The CoDream paper's tables and figures: {label}", *notes]
    parts.append("\n".join(f"- {name}: {text}" for name, text in facts.items()))
    for page in pages:
        parts += [f"## {page.artefact.title} ({label})", _markdown_table(page)]
        if page.artefact.name in pictures:
            parts.append(f"![{page.artefact.title}]({pictures[page.artefact.name]})")
        parts.append("\n".join(f"- {text}" for text in page.remarks()))
        commands = [
            f"# row {number}\n" + "\n".join(line.commands)
            for number, line in enumerate(page.lines, start=1)
        ]
        parts += ["```sh\n" + "\n".join(commands) + "\n```", f"{page.spent}."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(page: Page) -> str:
    lines = [page.headings, ["---"] * len(page.headings), *page.cells()]
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


# Pictures ----------------------------------------------------------------------------------------


def draw(page: Page, path: Path, label: str) -> bool:
    """Draw a figure as a PNG file, ``label`` in its title; False where the artefact is a table."""
    painter = _PAINTERS.get(page.artefact.name)
    if painter is None:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    painter(axis, page)
    axis.set_title(f"{page.artefact.title} ({label})", fontsize=9)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return True


def _plot_columns(
    axis: Axes,
    page: Page,
    points: Mapping[float, Line],
    styles: Mapping[str, str],
    suffix: str = "",
) -> None:
    """Draw one curve a column, with the spread over seeds.

    Args:
        axis: to draw on.
        page: whose columns.
        points: rows by their place on the axis.
        styles: matplotlib's format by column.
        suffix: of the curves' names.
    """
    for column in page.artefact.columns:
        if column.name not in styles:
            continue
        cells = [(place, line.cell(column)) for place, line in points.items()]
        found = [(place, c) for place, c in cells if c.status == MEASURED and c.values]
        axis.errorbar(
            [place for place, _ in found],
            [100 * statistics.mean(cell.values) for _, cell in found],
            [100 * statistics.stdev(c.values) if len(c.values) > 1 else 0 for _, c in found],
            fmt=styles[column.name],
            capsize=3,
            label=column.name + suffix,
        )
    axis.set_ylabel("test accuracy, %")


def _draw_clients(axis: Axes, page: Page) -> None:
    points: dict[float, Line] = {int(line.row.labels["K"]): line for line in page.lines}
    styles = {"Co-Dream": "o-", "Independent": "x-", "FedAvg": "^-", "server student": "s-"}
    _plot_columns(axis, page, points, styles)
    axis.set_xticks(list(points))
    axis.set_xlabel("clients (K = 2 without secure aggregation)")


def _draw_batches(axis: Axes, page: Page) -> None:
    for line in page.lines:
        histories = [run.server_history for run in line.runs if not run.error]
        means = [
            100 * statistics.mean(value for value in values if value is not None)
            for values in zip(*histories, strict=True)
        ]
        rounds = range(1, len(means) + 1)
        axis.plot(rounds, means, label=f"{line.row.labels['batches']} a round")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("round")
    axis.set_ylabel("server student's test accuracy, %")


def _draw_teachers(axis: Axes, page: Page) -> None:
    places = dict(enumerate(page.lines))
    for varied, line_style in (("examples", "-"), ("model", "--")):
        points: dict[float, Line] = {
            place: line for place, line in places.items() if line.row.labels["varied"] == varied
        }
        styles = {"teachers": f"C0o{line_style}", "server student": f"C1s{line_style}"}
        _plot_columns(axis, page, points, styles, f", {varied} varied")
    names = [f"{line.row.labels['varied']}\n{line.row.labels['teacher']}" for line in page.lines]
    axis.set_xticks(list(places), names, fontsize=8)


_PAINTERS = {"figure3": _draw_clients, "figure4": _draw_batches, "figure5": _draw_teachers}
