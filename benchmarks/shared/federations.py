"""What the learning benchmarks share: runs over seeds and validation folds."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sklearn.model_selection import StratifiedKFold

from benchmarks.shared.gates import progress
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.federation.simulation import Simulation
from codream_secure.runs.formats import Summary
from codream_secure.runs.summary import summarise

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


def run(options: Mapping[str, object], dataset: Dataset) -> Summary:
    """Run one federation to its end and return its summary."""
    simulation = Simulation(Config.from_options(options), dataset=dataset)
    for _ in simulation.rounds():
        pass
    return summarise(simulation)


def mean(summaries: Iterable[Summary], name: str) -> float:
    """Return the mean over runs of one accuracy."""
    return statistics.mean(getattr(s.accuracy, name) for s in summaries)


def over_seeds(
    options: Mapping[str, object], seeds: Iterable[int], dataset: Callable[[int], Dataset]
) -> list[Summary]:
    """Run a federation once a seed."""
    summaries = []
    for seed in seeds:
        progress(f"{dict(options)} seed {seed}")
        summaries.append(run({**options, "seed": seed}, dataset(seed)))
    return summaries
