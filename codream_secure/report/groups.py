"""Groups of runs that have the same settings and differ only in their seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from codream_secure.runs.recorded_run import ALONE, TOGETHER, RecordedRun, RoundFigures

# Runs that differ in these settings only are the same kind of run.
_CIRCUMSTANCES = {"seed", "data_dir", "device"}
# The settings that a label names first.
_TELLING = ("dp_eps", "partition", "clients", "models", "rounds", "dreams", "dream_steps")
_NAMES = {
    "codream": "CoDream",
    "codream-fast": "CoDream-fast",
    "codream-messenger": "CoDream-messenger",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "moon": "MOON",
    "fedgen": "FedGen",
    "fedmd": "FedMD",
    "avgkd": "AvgKD",
    "fd": "FD",
    "lg-fedavg": "LG-FedAvg",
    "fml": "FML",
    "fedkd": "FedKD",
    "fedproto": "FedProto",
    "fedgh": "FedGH",
    "fedtgp": "FedTGP",
    "fedmrl": "FedMRL",
    "messenger": "messenger",
    ALONE: "independent training",
    TOGETHER: "centralized training",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve: the mean over seeds after one round, and their range."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of the same settings.

    Attributes:
        label: the method, and the settings that tell it from other groups of that method.
        runs: by seed, at least one.
    """

    label: str
    runs: tuple[RecordedRun, ...]

    @property
    def first(self) -> RecordedRun:
        """The run whose settings and pictures stand for all."""
        return self.runs[0]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.first.method

    @property
    def is_codream(self) -> bool:
        """Whether it is this project's own method."""
        return self.method.startswith("codream")

    @property
    def sends(self) -> bool:
        """Whether clients send anything at all."""
        return self.first.sends

    def figures(self, read: Callable[[RecordedRun], float | None]) -> list[float]:
        """Return a figure of every seed that has it."""
        return [found for run in self.runs if (found := read(run)) is not None]

    def mean(self, read: Callable[[RecordedRun], float | None]) -> float | None:
        """Return the mean of a figure over the seeds that have it; None if no seed has it."""
        found = self.figures(read)
        return fmean(found) if found else None

    def phases(self) -> dict[str, tuple[float, float]]:
        """Return bytes up and down by phase, the mean over seeds with a summary."""
        tables = [run.phases for run in self.runs if run.phases]
        names = dict.fromkeys(name for table in tables for name in table)
        return {
            name: (
                fmean(table.get(name, (0.0, 0.0))[0] for table in tables),
                fmean(table.get(name, (0.0, 0.0))[1] for table in tables),
            )
            for name in names
        }

    def curve(
        self, x: Callable[[RoundFigures], float | None], y: Callable[[RoundFigures], float | None]
    ) -> list[Point]:
        """Return a point for every round that all seeds with finished rounds have reached."""
        tables = [
            {row.round: row for row in run.rounds_done} for run in self.runs if run.rounds_done
        ]
        common = set.intersection(*map(set, tables)) if tables else set()
        points = []
        for number in sorted(common):
            pairs = [(x(table[number]), y(table[number])) for table in tables]
            across = [a for a, _ in pairs if a is not None]
            up = [b for _, b in pairs if b is not None]
            if len(across) == len(up) == len(pairs):
                points.append(Point(fmean(across), fmean(up), min(up), max(up)))
        return points


def group(runs: Sequence[RecordedRun]) -> list[Group]:
    """Return groups of runs that differ only in their seed, in the order of the runs."""
    found: dict[str, list[RecordedRun]] = {}
    for run in runs:
        found.setdefault(repr((run.method, sorted(_settings(run).items()))), []).append(run)
    alike = [tuple(sorted(same, key=lambda run: run.seed)) for same in found.values()]
    if len(alike) > 1:
        # Costs are those of all rounds. To compare fairly, take the accuracy after all rounds too.
        alike = [tuple(replace(run, at_end=True) for run in same) for same in alike]
    return [Group(_label(same[0], [other[0] for other in alike]), same) for same in alike]


def _settings(run: RecordedRun) -> Mapping[str, object]:
    settings = {name: value for name, value in run.options.items() if name not in _CIRCUMSTANCES}
    own = run.summary.baseline if run.summary else None
    return settings | {f"baseline {name}": value for name, value in (own or {}).items()}


def differing(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return by method the settings in which its groups differ."""
    by_method: dict[str, list[RecordedRun]] = {}
    for one in groups:
        by_method.setdefault(one.method, []).append(one.first)
    found = {method: _differing(runs) for method, runs in by_method.items()}
    return {_name(method): names for method, names in found.items() if names}


def _differing(runs: Sequence[RecordedRun]) -> list[str]:
    settings = [_settings(run) for run in runs]
    names = sorted(set().union(*settings), key=lambda name: (_rank(name), name))
    return [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]


def _rank(name: str) -> int:
    return _TELLING.index(name) if name in _TELLING else len(_TELLING)


def _label(run: RecordedRun, others: Sequence[RecordedRun]) -> str:
    """Return the method's name, and the fewest settings that tell it from its other groups."""
    settings = [_settings(other) for other in others if other.method == run.method]
    chosen: list[str] = []
    kinds = 1
    for name in _differing([other for other in others if other.method == run.method]):
        told = {repr([one.get(key) for key in (*chosen, name)]) for one in settings}
        if len(told) > kinds:
            chosen, kinds = [*chosen, name], len(told)
    own = _settings(run)
    told_here = ", ".join(f"{key} {own[key]}" for key in chosen if key in own)
    name = _name(run.method)
    return f"{name} ({told_here})" if told_here else name


def _name(method: str) -> str:
    """Return a method's name as its authors write it; suffixes such as -secure stay."""
    known = [name for name in _NAMES if method == name or method.startswith(f"{name}-")]
    family = max(known, key=len, default="")
    return _NAMES.get(family, "") + method.removeprefix(family)
