"""What the learning benchmarks share: runs of one method over seeds, and validation folds."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from sklearn.model_selection import StratifiedKFold

from benchmarks.shared.grid import Cell, Grid
from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.compare.plan import Budget
from codream_secure.compare.results import figures, means
from codream_secure.config.methods import parse_method
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.federation.run import Run
from codream_secure.federation.simulation import Simulation
from codream_secure.privacy.class_means import ClassMeanImages
from codream_secure.runs.comparison_format import Cell as CompareCell
from codream_secure.runs.comparison_format import Means
from codream_secure.runs.formats import Row, Summary
from codream_secure.runs.summary import row_of, summarise

FOLDS = 5
# Laid over the settings of a quick run of accuracies, which shows only that everything runs.
QUICK: dict[str, object] = {
    "clients": 4,
    "samples_per_client": 60,
    "rounds": 1,
    "dreams": 16,
    "dream_steps": 2,
    "kd_epochs": 1,
}


class Outcome(msgspec.Struct, frozen=True):
    """What a run left: its summary, and accuracies and costs after every round."""

    summary: Summary
    rounds: tuple[Row, ...]

    @property
    def reported(self) -> Row:
        """The round that validation chose (`Observer.reported`)."""
        return self.rounds[(self.summary.reported_round or 0) - 1]

    @property
    def clients(self) -> list[float]:
        """Mean test accuracy of the clients after every round."""
        return [statistics.mean(row.clients) for row in self.rounds]

    @property
    def independent(self) -> list[float]:
        """The same of each client alone; empty if that was not asked for."""
        return [statistics.mean(row.independent) for row in self.rounds if row.independent]


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


def dream(
    options: Mapping[str, object],
    *,
    dataset: Dataset | None = None,
    alone: bool = True,
    images: ClassMeanImages | None = None,
) -> Outcome:
    """Run CoDream to its end.

    Args:
        options: as of `codream-secure simulate`, by flat name.
        dataset: used instead of the one that the options name.
        alone: also train every client alone beside it.
        images: where dreams begin.
    """
    config = Config.from_options(options)
    run = Simulation(config, dataset=dataset, compare_independent=alone)
    for group in run.groups:
        group.images = images
    return _outcome(run, None)


def baseline(options: Mapping[str, object], method: str, budget: Budget) -> Outcome:
    """Run another method for as long as a budget lasts, its step size not tuned."""
    config = Config.from_options(options)
    return _outcome(BaselineRun(config, parse_method(method), BaselineSettings()), budget)


def _outcome(run: Run, budget: Budget | None) -> Outcome:
    measured = budget.limited(run) if budget else run.rounds()
    rounds = tuple(row_of(run, measurement) for measurement in measured)
    if not rounds:
        raise RuntimeError("no round was finished")
    return Outcome(summarise(run), rounds)


def over_seeds(
    grid: Grid,
    options: Mapping[str, object],
    seeds: Iterable[int],
    *,
    name: str = "codream",
    dataset: Dataset | None = None,
    alone: bool = True,
    images: ClassMeanImages | None = None,
) -> list[Outcome]:
    """Run CoDream once a seed.

    Args:
        grid: that keeps the runs, a cell each.
        options: of the run, without its seed.
        seeds: of the runs.
        name: of the cells: say what is not in the options, such as another dataset.
        dataset: as of `dream`.
        alone: as of `dream`.
        images: as of `dream`.
    """
    found = []
    for seed in seeds:
        seeded = {**options, "seed": seed}

        def make(seeded: Mapping[str, object] = seeded) -> Outcome:
            return dream(seeded, dataset=dataset, alone=alone, images=images)

        settings = seeded if alone else {**seeded, "alone": False}
        found.append(grid.result(name, settings, make, Outcome))
    return found


def baseline_cell(
    grid: Grid, options: Mapping[str, object], method: str, budget: Budget
) -> Cell[Outcome]:
    """Return the cell of another method; options hold the seed."""
    settings = {**options, budget.kind: budget.amount}
    return grid.cell(method, settings, lambda: baseline(options, method, budget), Outcome)


def mean(outcomes: Iterable[Outcome], name: str) -> float:
    """Return the mean over runs of one accuracy of the reported round."""
    return float(statistics.mean(getattr(one.summary.accuracy, name) for one in outcomes))


def figures_of(outcomes: Iterable[Outcome], method: str) -> Means | None:
    """Return the means over seeds that `codream-secure compare` would show."""
    way = parse_method(method)
    found = [figures(way, one.rounds, one.summary, None) for one in outcomes]
    return means([CompareCell(folder="", failed=None, figures=one) for one in found])


def method_row(
    case: str, method: str, mean: Means | None, failed: str | None = None
) -> dict[str, Any]:
    """Return what a table shows of a method in one case.

    Args:
        case: what the settings are.
        method: as the row calls it.
        mean: figures, means over seeds; None if all failed.
        failed: why seeds failed.
    """

    def of(name: str, scale: float = 1.0) -> float | None:
        value = getattr(mean, name, None)
        return None if value is None else value / scale

    return {
        "case": case,
        "method": method,
        "seeds": mean.seeds if mean else 0,
        "accuracy": of("accuracy"),
        "spread": of("accuracy_spread"),
        "epsilon": of("epsilon"),
        "MB up": of("bytes_up", 1e6),
        "MB down": of("bytes_down", 1e6),
        "MB to target": of("bytes_to_target", 1e6),
        "rounds": of("rounds"),
        "iterations": of("iterations"),
        "seconds": of("seconds"),
        "failed": failed,
    }
