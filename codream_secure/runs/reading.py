"""Reads run folders back: what a page or a list needs of them, unknown where a file lacks it."""

import json
import math
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from codream_secure.baselines.methods import parse_method
from codream_secure.errors import UserError

_CONFIG, _METRICS, _SUMMARY = "config.toml", "metrics.jsonl", "summary.json"
_CELLS, _COMPARISON, _FAILED = "cells", "compare.json", "failed.txt"

# Methods in which nothing travels.
ALONE = "independent"
TOGETHER = "centralized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One round: accuracies as fractions, bytes of one client and costs since the beginning.

    ``accuracy`` is that of the one model for all where a method has one, else the clients' mean.
    """

    round: int
    accuracy: float | None
    spread: float | None
    independent: float | None
    student: float | None
    bytes_up: float | None
    bytes_down: float | None
    iterations: float | None
    seconds: float | None
    epsilon: float | None

    @property
    def bytes_both(self) -> float | None:
        """Bytes up and down together."""
        return both(self.bytes_up, self.bytes_down)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        folder: of the run.
        config_text: ``config.toml`` as it stands.
        config: the same, parsed.
        summary: ``summary.json``; empty if the run has not written it.
        rows: of ``metrics.jsonl``.
        at_end: whether figures are those of the last round, to which the costs belong, and not of
            the round that the run reports.
    """

    folder: Path
    config_text: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: tuple[Row, ...]
    at_end: bool = False

    def _text(self, name: str) -> str | None:
        value = self.summary.get(name, self.config.get(name))
        return None if value is None else str(value)

    def _figure(self, *path: str) -> float | None:
        value: Any = self.summary
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return figure(value)

    def _last(self, name: str) -> float | None:
        return getattr(self.rows[-1], name) if self.rows else None

    def _reported(self, name: str, figure_name: str) -> float | None:
        """Return an accuracy of the summary, or the last round's where that is asked for."""
        found = None if self.at_end and self.rows else self._figure("accuracy", figure_name)
        return self._last(name) if found is None else found

    @property
    def method(self) -> str:
        """Name of the method."""
        return _method(self.folder, self.summary, self.config)

    @property
    def one_model(self) -> bool:
        """Whether the method yields one model for all, which is then what counts."""
        return has_one_model(self.method)

    @property
    def compared(self) -> bool:
        """Whether the run is a cell of a comparison, whose budget says how many rounds it has."""
        return is_cell(self.folder)

    @property
    def dataset(self) -> str | None:
        """Name of the dataset."""
        return self._text("dataset")

    @property
    def test_digest(self) -> str | None:
        """Digest of the test part."""
        return self._text("test_digest")

    @property
    def partition(self) -> str | None:
        """How the data was dealt."""
        return self._text("partition")

    @property
    def clients(self) -> int | None:
        """How many clients there are."""
        value = figure(self.summary.get("clients", self.config.get("clients")))
        return None if value is None else int(value)

    @property
    def seed(self) -> int:
        """The seed; 0 where none was set."""
        seed = self.summary.get("seed", self.config.get("seed"))
        return seed if isinstance(seed, int) else 0

    @property
    def secure(self) -> bool | None:
        """Whether inputs were masked."""
        value = self.summary.get("secure", self.config.get("secure"))
        return value if isinstance(value, bool) else None

    @property
    def sends(self) -> bool:
        """Whether clients send anything at all."""
        dreams_alone = self.summary.get("collaboration", self.config.get("collaboration")) is False
        return self.method not in (ALONE, TOGETHER) and not dreams_alone

    @property
    def accuracy(self) -> float | None:
        """Test accuracy of the one model for all if there is one, else the clients' mean."""
        one = self._reported("accuracy", "server") if self.one_model else None
        return self._reported("accuracy", "clients_mean") if one is None else one

    @property
    def spread(self) -> float | None:
        """Standard deviation of the accuracy over clients; None of one model for all."""
        return None if self.one_model else self._reported("spread", "clients_std")

    @property
    def independent(self) -> float | None:
        """Mean test accuracy of the same clients training alone."""
        return self._reported("independent", "independent_mean")

    @property
    def student(self) -> float | None:
        """Test accuracy of the server's student."""
        return None if self.one_model else self._reported("student", "server")

    @property
    def bytes_up(self) -> float | None:
        """Bytes that one client sent."""
        return self._bytes("up")

    @property
    def bytes_down(self) -> float | None:
        """Bytes that one client received."""
        return self._bytes("down")

    def _bytes(self, direction: str) -> float | None:
        found = self._figure("bytes", f"per_client_{direction}")
        if found is None:
            found = self._last(f"bytes_{direction}")
        return found if found is not None or self.sends else 0.0

    @property
    def bytes_both(self) -> float | None:
        """Bytes up and down together."""
        return both(self.bytes_up, self.bytes_down)

    @property
    def fedavg_bytes(self) -> float | None:
        """What FedAvg of the same models would move over the same rounds, up and down."""
        return both(
            self._figure("bytes", "fedavg_per_client_up"),
            self._figure("bytes", "fedavg_per_client_down"),
        )

    @property
    def phases(self) -> dict[str, tuple[float, float]]:
        """Bytes up and down by phase, phases without any left out."""
        sizes = self.summary.get("bytes")
        table = sizes.get("by_phase") if isinstance(sizes, Mapping) else None
        found = {}
        for name, by in table.items() if isinstance(table, Mapping) else ():
            if isinstance(by, Mapping):
                pair = (figure(by.get("up")) or 0.0, figure(by.get("down")) or 0.0)
                if any(pair):
                    found[str(name)] = pair
        return found

    @property
    def private(self) -> bool | None:
        """Whether the run is differentially private; None if that is unknown."""
        if "privacy" in self.summary:
            return self.summary["privacy"] is not None
        if self.config:
            return self.config.get("dp_eps") is not None
        return None

    @property
    def epsilon(self) -> float | None:
        """The epsilon of what was run."""
        found = self._figure("privacy", "epsilon")
        return self._last("epsilon") if found is None else found

    @property
    def delta(self) -> float | None:
        """The delta that goes with it."""
        return self._figure("privacy", "delta")

    @property
    def unit(self) -> str:
        """Whom epsilon protects, in words."""
        found = self.summary.get("privacy")
        unit = found.get("unit") if isinstance(found, Mapping) else None
        return "one client" if unit == "client" else "one training example"

    @property
    def seeded_noise(self) -> bool:
        """Whether whoever knows the seed can remove the noise."""
        privacy = self.summary.get("privacy")
        return isinstance(privacy, Mapping) and privacy.get("noise_source") == "seeded"

    @property
    def rounds(self) -> int | None:
        """Rounds that were asked for; None where a budget decides."""
        if self.compared:
            return None
        value = figure(self.summary.get("rounds", self.config.get("rounds")))
        return None if value is None else int(value)

    @property
    def rounds_finished(self) -> int:
        """Rounds that were finished."""
        found = self._figure("rounds_finished")
        return len(self.rows) if found is None else int(found)

    @property
    def seconds(self) -> float | None:
        """What the method itself took, on one machine."""
        found = self._figure("seconds", "busy")
        if found is None:
            found = self._figure("seconds", "total")
        return self._last("seconds") if found is None else found

    @property
    def iterations(self) -> float | None:
        """Work of one client."""
        found = self._figure("iterations")
        return self._last("iterations") if found is None else found


def figure(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def both(up: float | None, down: float | None) -> float | None:
    """Return the sum of two figures; None if one is unknown."""
    return None if up is None or down is None else up + down


def is_run(folder: Path) -> bool:
    """Tell whether a folder looks like that of a run."""
    return (folder / _CONFIG).is_file() and (folder / _METRICS).is_file()


def has_one_model(method: str) -> bool:
    """Tell whether a method yields one model for all; of unknown ones it is not known to."""
    try:
        return parse_method(method).one_model
    except UserError:
        return False


def is_cell(folder: Path) -> bool:
    """Tell whether a run folder is that of a cell of a comparison."""
    place = folder.resolve().parent
    return place.name == _CELLS and (place.parent / _COMPARISON).is_file()


def is_comparison(folder: Path) -> bool:
    """Tell whether a folder holds the cells of a comparison."""
    return (folder / _CELLS).is_dir()


def cells(folder: Path) -> list[Path]:
    """Return the run folders of a comparison that are finished, by name."""
    found = sorted((folder / _CELLS).iterdir())
    return [path for path in found if is_run(path) and (path / _SUMMARY).is_file()]


def missing(folder: Path) -> dict[str, str]:
    """Return why cells of a comparison have no results, by their folder's name."""
    if not is_comparison(folder):
        return {}
    done = set(cells(folder))
    found: dict[str, str] = {}
    for path in sorted(path for path in (folder / _CELLS).iterdir() if path.is_dir()):
        if path not in done:
            failed = path / _FAILED
            found[path.name] = _text_of(failed).strip() if failed.is_file() else "not finished"
    return found


def rerun(folder: Path) -> str:
    """Return the command that makes a run or a comparison again; of a cell, its comparison's."""
    whole = folder.resolve().parent.parent if is_cell(folder) else folder
    if is_comparison(whole):
        return shlex.join(["codream-secure", "compare", *_options(_plan(whole))])
    return shlex.join(["codream-secure", "simulate", "--config", str(folder / _CONFIG)])


def matched(folder: Path) -> str | None:
    """Return what all methods of a comparison might spend equally, in words."""
    match = _plan(folder).get("match") if is_comparison(folder) else None
    return None if match is None else f"Every method might spend equal {match}."


def _plan(folder: Path) -> Mapping[str, Any]:
    """Return what a comparison was begun with, as far as compare.json tells."""
    if not (folder / _COMPARISON).is_file():
        return {}
    found = _json(folder, _COMPARISON, _text_of(folder / _COMPARISON))
    plan = found.get("plan") if isinstance(found, Mapping) else None
    return plan if isinstance(plan, Mapping) else {}


def _options(plan: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name in ("methods", "seeds"):
        if isinstance(plan.get(name), list):
            words += [f"--{name}", ",".join(map(str, plan[name]))]
    options = {name: plan.get(name) for name in ("match", "trials", "target")}
    own = plan.get("settings")
    if isinstance(own, Mapping):
        options |= {option: own.get(name) for name, option in _BASELINE_OPTIONS.items()}
    if isinstance(plan.get("options"), Mapping):
        options |= plan["options"]
    for name, value in options.items():
        option = str(name).replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", str(value)]
    return words


_BASELINE_OPTIONS = {
    "local_epochs": "fed_epochs",
    "learning_rate": "fed_lr",
    "prox": "prox",
    "moon_weight": "moon_weight",
}


def _method(folder: Path, summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return a run's method; the settings of a baseline's cell do not know it."""
    if is_cell(folder) and "method" not in summary:
        return folder.resolve().name.rpartition("-seed")[0]
    return str(summary.get("method") or config.get("method") or "unknown method")


def find(folder: Path) -> list[Path]:
    """Return the run folders in a folder, those of comparisons included.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; `codream-secure simulate` makes runs, "
            "or name the folder they are in"
        )
    found: list[Path] = []
    for path in (folder, *sorted(p for p in folder.iterdir() if p.is_dir() and p.name != _CELLS)):
        if is_run(path):
            found.append(path)
        if is_comparison(path):
            found.extend(cells(path))
    return found


def read_all(folders: Iterable[Path]) -> list[Run]:
    """Read run folders; a comparison stands for all its cells, a folder counts once.

    Raises:
        UserError: a folder is no run or is damaged, or the runs cannot be compared.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        inner = cells(folder) if is_comparison(folder) else [folder]
        if not inner:
            raise UserError(
                f"{folder}: none of its cells is finished; repeat the `codream-secure compare` "
                "that made it"
            )
        for path in inner:
            paths.setdefault(path.resolve(), path)
    runs = [read(path) for path in paths.values()]
    _check_comparable(runs)
    return runs


def read(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        UserError: it is no run, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the folder of a run")
    if not is_run(folder):
        raise UserError(
            f"{folder}: this is not the folder of a run (it needs {_CONFIG} and {_METRICS}); "
            "name what `codream-secure simulate --out` wrote"
        )
    config_text = _text_of(folder / _CONFIG)
    try:
        config = tomllib.loads(config_text)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise _damaged(folder, _CONFIG, "it is no TOML") from None
    summary = _summary(folder)
    one_model = has_one_model(_method(folder, summary, config))
    lines = _text_of(folder / _METRICS).splitlines()
    rows = tuple(
        _row(folder, number, line, one_model=one_model)
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    return Run(folder=folder, config_text=config_text, config=config, summary=summary, rows=rows)


def _check_comparable(runs: Sequence[Run]) -> None:
    for name in ("dataset", "test_digest"):
        first: Run | None = None
        for run in runs:
            if getattr(run, name) is None:
                continue
            first = first or run
            if getattr(run, name) != getattr(first, name):
                raise UserError(
                    f"{first.folder}, {run.folder}: these runs were tested on different data and "
                    "cannot be compared"
                )


def _summary(folder: Path) -> Mapping[str, Any]:
    if not (folder / _SUMMARY).is_file():
        return {}
    found = _json(folder, _SUMMARY, _text_of(folder / _SUMMARY))
    if not isinstance(found, Mapping):
        raise _damaged(folder, _SUMMARY, "it holds no object")
    return found


def _row(folder: Path, number: int, line: str, *, one_model: bool) -> Row:
    found = _json(folder, f"{_METRICS}, line {number},", line)
    if not isinstance(found, Mapping) or not isinstance(found.get("round"), int):
        raise _damaged(folder, _METRICS, f"line {number} is no round")
    clients = _figures(found.get("clients"))
    independent = _figures(found.get("independent"))
    server = figure(found.get("server"))
    mean = fmean(clients) if clients else None
    return Row(
        round=found["round"],
        accuracy=server if one_model and server is not None else mean,
        spread=pstdev(clients) if clients else None,
        independent=fmean(independent) if independent else None,
        student=None if one_model else server,
        **{
            name: figure(found.get(name))
            for name in ("bytes_up", "bytes_down", "iterations", "seconds", "epsilon")
        },
    )


def _figures(values: object) -> list[float]:
    if not isinstance(values, list):
        return []
    return [found for value in values if (found := figure(value)) is not None]


def _json(folder: Path, name: str, text: str) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(folder, name, "it is no JSON") from None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise _damaged(path.parent, path.name, "it is no text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _damaged(folder: Path, name: str, reason: str) -> UserError:
    again = f"run it again with `codream-secure simulate --config {folder / _CONFIG}`"
    if is_cell(folder):
        again = "delete it and repeat the `codream-secure compare` that made it"
    return UserError(f"{folder}: {name} is damaged ({reason}); {again}, or leave the folder out")
