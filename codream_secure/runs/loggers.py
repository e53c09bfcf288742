"""Sends a run's figures, one point a round, to programs that draw them.

An experiment logger sees what `metrics.jsonl` holds: accuracies that no epsilon covers, and costs.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from codream_secure.errors import UserError, WriteError
from codream_secure.runs.formats import Row

_COSTS = ("aborted_steps", "bytes_up", "bytes_down", "iterations", "seconds", "epsilon")
_PROJECT = "codream-secure"


class Logger(Protocol):
    """Follows a run from outside. Anything that it raises is told; the run goes on without it."""

    def begin(self, name: str, settings: Mapping[str, object]) -> None:
        """Open what the figures go to, before the first round.

        Args:
            name: of the run.
            settings: all of them, by flat name; None where nothing was chosen.
        """

    def log(self, figures: Mapping[str, float], round_number: int) -> None:
        """Take the figures of a round, as `figures_of` names them; rounds count from 1."""

    def end(self) -> None:
        """Close it. This is called once, however the run ended."""


class TensorBoard:
    """Event files in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def begin(self, name: str, settings: Mapping[str, object]) -> None:  # noqa: ARG002
        """Open an event file."""
        module = importlib.import_module("torch.utils.tensorboard.writer")
        self._writer = module.SummaryWriter(str(self._folder))

    def log(self, figures: Mapping[str, float], round_number: int) -> None:
        """Write a point for each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, round_number)
        self._writer.flush()

    def end(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its own variables (`WANDB_MODE`, `WANDB_PROJECT`) decide where."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run: Any = None

    def begin(self, name: str, settings: Mapping[str, object]) -> None:
        """Start the run."""
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=name,
            dir=str(self._folder),
            config=dict(settings),
            reinit="create_new",
            # What it prints would mix with the run's own lines.
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, figures: Mapping[str, float], round_number: int) -> None:
        """Log the figures of a round."""
        self._run.log(dict(figures), step=round_number)

    def end(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow; its own variables (`MLFLOW_TRACKING_URI`) decide where."""

    def __init__(self, folder: Path) -> None:  # noqa: ARG002 - MLflow has a store of its own
        self._client: Any = None
        self._id = ""

    def begin(self, name: str, settings: Mapping[str, object]) -> None:
        """Start the run; the client leaves alone what run the caller has active."""
        self._client = importlib.import_module("mlflow").MlflowClient()
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(wanted)
        experiment = found.experiment_id if found else self._client.create_experiment(wanted)
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        for key, value in settings.items():
            if value is not None:
                self._client.log_param(self._id, key, value)

    def log(self, figures: Mapping[str, float], round_number: int) -> None:
        """Log the figures of a round."""
        for name, value in figures.items():
            self._client.log_metric(self._id, name, value, step=round_number)

    def end(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._id)


# By name: what makes it in the folder of a run, and the module that it needs.
_LOGGERS: dict[str, tuple[Callable[[Path], Logger], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}


def check_loggers(names: list[str]) -> None:
    """Raise UserError if a logger has an unknown name or is not installed; nothing is imported."""
    for name in names:
        if name not in _LOGGERS:
            raise UserError(f"unknown logger {name!r}; there are {', '.join(_LOGGERS)}")
        if find_spec(_LOGGERS[name][1]) is None:
            raise UserError(f"--{name} needs a package: pip install 'codream-secure[{name}]'")


def logger(name: str, folder: Path) -> Logger:
    """Return a logger of this name for the run in a folder; see `check_loggers`."""
    return _LOGGERS[name][0](folder)


def figures_of(row: Row) -> dict[str, float]:
    """Return what loggers see of a round: means over clients, and costs since the beginning."""
    points = {
        "accuracy/clients": _mean(row.clients),
        "accuracy/independent": _mean(row.independent),
        "accuracy/personal": _mean(row.personal),
        "accuracy/server": row.server,
        "accuracy/validation": row.validation,
        **{f"cost/{name}": getattr(row, name) for name in _COSTS},
    }
    return {name: float(value) for name, value in points.items() if value is not None}


def _mean(values: tuple[float, ...]) -> float | None:
    return float(np.mean(values)) if values else None


class Following:
    """Loggers that follow one run. One that fails is dropped, and the run goes on.

    Attributes:
        failed: what the first failure was; None: there was none.
    """

    def __init__(self, loggers: list[Logger]) -> None:
        self._loggers = loggers
        self.failed: WriteError | None = None

    def begin(self, name: str, settings: Mapping[str, object]) -> None:
        """Begin all of them; see `Logger.begin`.

        Raises:
            UserError: one cannot begin; those before it are ended.
        """
        waiting, self._loggers = self._loggers, []
        for one in waiting:
            try:
                one.begin(name, settings)
            except Exception as error:
                self.end()
                raise UserError(f"cannot log to {_name(one)}: {_line(error)}") from error
            self._loggers.append(one)

    def log(self, row: Row) -> None:
        """Tell all of them of a round."""
        self._each(lambda one: one.log(figures_of(row), row.round))

    def end(self) -> None:
        """End all of them."""
        self._each(lambda one: one.end())

    def _each(self, act: Callable[[Logger], None]) -> None:
        for one in list(self._loggers):
            try:
                act(one)
            except Exception as error:  # noqa: BLE001 - somebody else's code must not end a run
                self._loggers.remove(one)
                told = f"{_name(one)} failed and was left out since: {_line(error)}"
                self.failed = self.failed or WriteError(told)


def _name(one: Logger) -> str:
    return type(one).__name__


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
