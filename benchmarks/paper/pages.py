"""How the paper's tables are printed: terminal, a Markdown page, and pictures."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console

from benchmarks.paper.rows import MEASURED, Artefact, Line
from benchmarks.shared.gates import table


@dataclass(frozen=True)
class Page:
    """A finished table or figure."""

    artefact: Artefact
    lines: tuple[Line, ...]

    def seconds(self, clock: str) -> float:
        """Return ``seconds`` or ``cpu_seconds`` of all runs, shared and kept ones included."""
        return round(sum(line.spent(clock) for line in self.lines), 1)

    @property
    def spent(self) -> str:
        """Say how long it took."""
        return f"{self.seconds('seconds'):.0f} s, {self.seconds('cpu_seconds'):.0f} s of CPU time"

    def rows(self) -> list[dict[str, str]]:
        """Return the table's text by heading, ours above the paper's if it has any there."""
        printed = {name for line in self.lines for name in line.row.printed}
        found = []
        for number, line in enumerate(self.lines, start=1):
            row = {"row": str(number), **line.row.labels}
            for column in self.artefact.columns:
                figure = line.figure(column)
                theirs = f"\n{figure.theirs}" if column.name in printed else ""
                row[column.name] = figure.ours + theirs
            found.append(row)
        return found

    def remarks(self) -> list[str]:
        """Return the notes of rows, numbered as in the table, and then the table's own."""
        numbered = [
            f"row {number}: {line.row.note}"
            for number, line in enumerate(self.lines, start=1)
            if line.row.note
        ]
        return [*numbered, *self.artefact.notes]


# Terminal ----------------------------------------------------------------------------------------


def show(console: Console, page: Page, label: str) -> None:
    """Print one table with its notes and commands, and ``label`` beside its title."""
    title = f"\n{page.artefact.title} ({label})"
    console.print(table(title, page.rows(), lines=True))
    commands = [
        f"row {number}: {text}"
        for number, line in enumerate(page.lines, start=1)
        for text in line.commands
    ]
    lines = (*page.remarks(), *commands, page.spent)
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


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
    rows = page.rows()
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
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
        cells = [(place, line.figure(column)) for place, line in points.items()]
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
    styles = {"CoDream": "o-", "Independent": "x-", "FedAvg": "^-", "server student": "s-"}
    _plot_columns(axis, page, points, styles)
    axis.set_xticks(list(points))
    axis.set_xlabel("clients (K = 2 without secure aggregation)")


def _draw_batches(axis: Axes, page: Page) -> None:
    for line in page.lines:
        found = [cell.result for cell in line.runs if cell.result]
        histories = [[measured.server for measured in one.rounds] for one in found]
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
