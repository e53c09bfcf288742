"""What the benchmark scripts share: runs over seeds, validation folds, gates and JSON."""

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sklearn.model_selection import StratifiedKFold

from codream_secure.config import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.report.summary import summarise
from codream_secure.simulation import Simulation

FOLDS = 5


def digits() -> Dataset:
    """Return the digits with their own test part."""
    return load_dataset("digits", Path("data"))


def fold(data: Dataset, index: int) -> Dataset:
    """Return a dataset whose test part is one fold of the training part: for choosing settings."""
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=11)
    train, held_out = list(splitter.split(data.x_train, data.y_train))[index]
    return dataclasses.replace(
        data,
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_test=data.x_train[held_out],
        y_test=data.y_train[held_out],
    )


def run(options: Mapping[str, object], dataset: Dataset) -> dict[str, Any]:
    """Run one federation to its end and return its summary."""
    simulation = Simulation(Config.from_options(options), dataset=dataset)
    for _ in simulation.rounds():
        pass
    return summarise(simulation)


def mean(summaries: Iterable[Mapping[str, Any]], name: str) -> float:
    """Return the mean over runs of one accuracy."""
    return statistics.mean(s["accuracy"][name] for s in summaries)


@dataclasses.dataclass(frozen=True)
class Gate:
    """A figure beside its target."""

    name: str
    value: float
    target: str
    holds: bool

    @classmethod
    def at_least(cls, name: str, value: float, bound: float) -> "Gate":
        """Return a gate that holds when the figure reaches the bound."""
        return cls(name, round(value, 4), f">= {bound:g}", value >= bound)

    @classmethod
    def below(cls, name: str, value: float, bound: float) -> "Gate":
        """Return a gate that holds when the figure stays below the bound."""
        return cls(name, round(value, 4), f"< {bound:g}", value < bound)


def report(title: str, rows: list[dict[str, Any]], gates: list[Gate], *, as_json: bool) -> None:
    """Print rows and gates as tables or as JSON; exit with 1 if a gate does not hold."""
    if as_json:
        result = {"title": title, "command": " ".join(sys.argv), "rows": rows}
        print(json.dumps(result | {"gates": [dataclasses.asdict(g) for g in gates]}, indent=2))
    else:
        console = Console(width=120)
        console.print(table(title, rows))
        if gates:
            console.print(table("gates", [dataclasses.asdict(gate) for gate in gates]))
    if not all(gate.holds for gate in gates):
        sys.exit(1)


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return a table with the keys of the first row as columns."""
    result = Table(*map(str, rows[0]), title=title, title_justify="left")
    for row in rows:
        result.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    return result


def progress(message: str) -> None:
    """Say on stderr what runs now."""
    print(message, file=sys.stderr, flush=True)


def over_seeds(
    options: Mapping[str, object], seeds: Iterable[int], dataset: Callable[[int], Dataset]
) -> list[dict[str, Any]]:
    """Run a federation once a seed."""
    summaries = []
    for seed in seeds:
        progress(f"{dict(options)} seed {seed}")
        summaries.append(run({**options, "seed": seed}, dataset(seed)))
    return summaries
