"""What all benchmark scripts share: figures beside their targets, tables and JSON."""

import dataclasses
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

WIDTH = 200  # of a printed table


@dataclasses.dataclass(frozen=True)
class Gate:
    """A figure beside its target."""

    name: str
    value: float
    target: str
    holds: bool

    def row(self) -> dict[str, Any]:
        """Return the gate for a table or for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def at_least(cls, name: str, value: float, bound: float) -> Self:
        """Return a gate that holds when the figure reaches the bound."""
        return cls(name, round(value, 4), f">= {bound:g}", value >= bound)

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> Self:
        """Return a gate that holds up to the bound."""
        return cls(name, round(value, 4), f"<= {bound:g}", value <= bound)

    @classmethod
    def below(cls, name: str, value: float, bound: float) -> Self:
        """Return a gate that holds when the figure stays below the bound."""
        return cls(name, round(value, 4), f"< {bound:g}", value < bound)


@dataclasses.dataclass(frozen=True)
class Comparison(Gate):
    """A ratio of our figure and somebody else's beside its target; for an absolute bar no ratio.

    Attributes:
        ours, theirs: the figures; theirs is None for an absolute bar, whose `value` is ours.
        source: where theirs comes from.
    """

    ours: float = float("nan")
    theirs: float | None = None
    source: str = "-"

    def row(self) -> dict[str, Any]:
        """Return both figures and their ratio; an absolute bar has neither theirs nor a ratio."""
        return {
            "name": self.name,
            "ours": self.ours,
            "theirs": self.theirs,
            "ratio": None if self.theirs is None else self.value,
            "target": self.target,
            "holds": self.holds,
            "source": self.source,
        }

    def of(self, ours: float, theirs: float | None = None, source: str = "-") -> Self:
        """Return the gate with the figures it compares."""
        return dataclasses.replace(self, ours=ours, theirs=theirs, source=source)


def _anywhere(word: str) -> str:
    """Return a word of a command line without the folders of one machine."""
    return Path(word).name if Path(word).is_absolute() else word


def own_command() -> str:
    """Return the command line that runs the script again, as it is typed in the checkout."""
    spec = sys.modules["__main__"].__spec__
    script = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return shlex.join(["python", *script, *map(_anywhere, sys.argv[1:])])


@dataclasses.dataclass(frozen=True)
class Report:
    """What a script found.

    Attributes:
        title: of the table.
        rows: one dict a row, all with the same keys.
        gates: figures beside targets, all of one class.
        notes: what else a reader needs, such as versions and what was not measured.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    gates: Sequence[Gate] = ()
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def show(self, *, as_json: bool, save: Path | None = None) -> bool:
        """Print rows and gates as tables or as JSON; tell whether all gates hold.

        Args:
            as_json: print JSON instead of tables.
            save: also write both forms to this path with .txt and .json appended.
        """
        whole = {"title": self.title, "command": own_command(), **self.notes, "rows": self.rows}
        text = json.dumps(whole | {"gates": [gate.row() for gate in self.gates]}, indent=2)
        if as_json:
            print(text)
        else:
            self._print_tables(Console(width=WIDTH))
        if save:
            save.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
            with save.with_suffix(".txt").open("w", encoding="utf-8") as file:
                file.write(f"$ {whole['command']}\n\n")
                self._print_tables(Console(width=WIDTH, file=file))
        return all(gate.holds for gate in self.gates)

    def unjudged(self) -> "Report":
        """Return the report of a quick run, which computes too little for any target."""
        note = {"quick": "too little is computed for the targets: none is judged"}
        return dataclasses.replace(self, gates=(), notes={**self.notes, **note})

    def _print_tables(self, console: Console) -> None:
        console.print(table(self.title, self.rows))
        if self.gates:
            console.print(table("gates", [gate.row() for gate in self.gates]))
        for name, text in self.notes.items():
            console.print(f"{name}: {text}", highlight=False)


def environment(*packages: str) -> dict[str, str]:
    """Return date, machine and versions of Python and of packages."""
    versions = [f"{name} {version(name)}" for name in packages]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def table(title: str, rows: Sequence[Mapping[str, Any]], *, lines: bool = False) -> Table:
    """Return a table with the keys of the first row as columns, and ``lines`` between rows."""
    result = Table(*map(str, rows[0]), title=title, title_justify="left", show_lines=lines)
    for row in rows:
        result.add_row(*map(_cell, row.values()))
    return result


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return "-" if value is None else str(value)


def progress(message: str) -> None:
    """Say on stderr what runs now."""
    print(message, file=sys.stderr, flush=True)
