"""What CoDream gives here: accuracy against bytes, unequal models, small images, bits, long runs.

    python -m benchmarks.learning.codream_results                       every part, hours on 2 cores
    ... --only bits long      some parts
    ... --quick               part fast, one seed, little of everything
    ... --record              write results/codream_*.txt, .json
    ... --keep DIR            finished runs are not run again

Test accuracies of the round that validation chose (`Observer.reported`); `independent, best` is the
best round of independent training, chosen on the test part in its favour. Settings were chosen on
folds and held-out halves of training parts (digits_choices.py; docs/codream.md), never on these
test parts. Masks are on; what a row differs in from the defaults of `codream-secure simulate`
stands beside it as its command line. `unequal`, `unequal_iid`, `ceiling`, `real` and `cifar10` read
.npz subsets of Fashion-MNIST and CIFAR-10 from --data-folder (x_train, y_train, x_test, y_test;
uint8) and are left out without.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning.settings import (
    CIFAR,
    FAST,
    FOUR,
    LONG,
    NOT_OF_DREAMS,
    SKEWED,
    UNEQUAL,
    UNEQUAL_IID,
)
from benchmarks.shared.federations import QUICK, Outcome, baseline_cell, mean, over_seeds
from benchmarks.shared.gates import Gate, Report, environment
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import parser, run_parts
from codream_secure.compare.plan import Budget
from codream_secure.data.datasets import load_dataset
from codream_secure.privacy.class_means import ClassMeanImages
from codream_secure.runs.commands import command_line

Runs = Mapping[str, Sequence[Outcome]]
Rows = Sequence[Mapping[str, Any]]
Judged = tuple[list[Gate], dict[str, str]]


@dataclass(frozen=True)
class Part:
    """Settings of a table's rows, and what is said of them.

    Attributes:
        title: of the table.
        cases: options of the runs, by row; a dataset is the name of a file in the data folder.
        judge: returns gates, and notes such as a curve.
        alone: whether clients also train alone.
        more: returns what else a run needs, from its options.
        seeds: at most so many.
    """

    title: str
    cases: Mapping[str, Mapping[str, Any]]
    judge: Callable[[Runs, Rows], Judged] = lambda _, __: ([], {})
    alone: bool = True
    more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _: {}
    seeds: int = 100

    def report(self, grid: Grid, seeds: int, folder: Path, *, quick: bool) -> Report | None:
        """Run all rows; None if there is no data."""
        runs, rows = {}, []
        for name, case in self.cases.items():
            options = located(case, folder)
            if options is None:
                return None
            chosen = options | (QUICK if quick else {})
            few = range(min(seeds, self.seeds))
            runs[name] = over_seeds(
                grid, chosen, few, name=name, alone=self.alone, **self.more(options)
            )
            rows.append(row(name, chosen, runs[name]))
        gates, notes = self.judge(runs, rows)
        report = Report(self.title, rows, gates, notes | environment("torch"))
        return report.unjudged() if quick else report


def located(options: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """Return options with the path of their data; None if the file is not there."""
    if "dataset" not in options:
        return dict(options)
    path = folder / options["dataset"]
    return {**options, "dataset": str(path)} if path.is_file() else None


def row(name: str, options: Mapping[str, object], runs: Sequence[Outcome]) -> dict[str, Any]:
    """Return what a table shows of the runs of one setting over seeds."""
    clients = [one.summary.accuracy.clients_mean or 0.0 for one in runs]
    server = [one.summary.accuracy.server for one in runs]
    alone, sizes = bool(runs[0].independent), runs[0].summary.bytes
    return {
        "case": name,
        "seeds": len(runs),
        "clients": statistics.mean(clients),
        # Nobody has a server who dreams alone.
        "server": None if None in server else mean(runs, "server"),
        "independent": mean(runs, "independent_mean") if alone else None,
        "independent, best": statistics.mean(max(one.independent) for one in runs)
        if alone
        else None,
        "personal": mean(runs, "personal_mean"),
        "spread of seeds": max(abs(value - statistics.mean(clients)) for value in clients),
        "MB up": sizes.per_client_up / 1e6,
        "MB down": sizes.per_client_down / 1e6,
        "round trips": runs[0].summary.protocol.round_trips,
        "seconds": max(one.summary.seconds.total for one in runs),
        "command": command_line("simulate", options),
    }


def curve(runs: Sequence[Outcome]) -> str:
    """Return megabytes of a client both ways and accuracy of the clients, round by round."""
    by_round = zip(*(one.clients for one in runs), strict=True)
    points = zip(runs[0].rounds, map(statistics.mean, by_round), strict=True)
    return "; ".join(f"{row.bytes_both / 1e6:.3f} MB {at:.3f}" for row, at in points)


def curves(runs: Runs) -> dict[str, str]:
    """Return the curve of every row; it needs no name if there is one row."""
    one = len(runs) == 1
    return {"curve" if one else f"curve, {name}": curve(found) for name, found in runs.items()}


def gain(runs: Sequence[Outcome]) -> float:
    """Return how much better clients are than independent training, both in the reported round."""
    return mean(runs, "clients_mean") - mean(runs, "independent_mean")


def gains(bound: float) -> Callable[[Runs, Rows], Judged]:
    """Return a judge with targets for what clients gain over independent training."""

    def judge(runs: Runs, rows: Rows) -> Judged:
        found = []
        for name, outcomes in runs.items():
            least = mean(outcomes, "clients_mean") - rows[0]["independent, best"]
            found += [
                Gate.at_least(f"{name}: gain", gain(outcomes), bound),
                Gate.at_least(f"{name}: gain over independent's best round", least, bound),
            ]
        return found, curves(runs)

    return judge


def judge_fast(runs: Runs, rows: Rows) -> Judged:
    """Compare fast mode at half of the bytes of pixels."""
    half, fast = runs["pixels"][0].rounds[-1].bytes_both / 2, runs["fast, half of the dreams"]
    affordable = sum(measured.bytes_both <= half for measured in fast[0].rounds)
    reached = [one.clients[affordable - 1] for one in fast if affordable]
    label = (
        f"fast, half of the dreams: clients after round {affordable}, the last within half "
        "of the bytes of pixels"
    )
    return [
        Gate.at_least("pixels: clients", rows[0]["clients"], 0.87),
        Gate.at_least(label, statistics.mean(reached) if reached else 0.0, 0.80),
    ], curves(runs)


def judge_long(runs: Runs, _: Rows) -> Judged:
    """Ask that a long run neither stops, nor takes steps back, nor forgets."""
    ((one,),) = runs.values()
    last, undone = statistics.mean(one.clients[-5:]), one.summary.dreaming
    return [
        Gate.at_least("rounds finished", one.summary.rounds_finished, one.summary.rounds),
        Gate.at_most("steps taken back", undone.rolled_back if undone else 0, 0),
        Gate.at_least("last five rounds above the first", last - one.clients[0], 0.0),
    ], curves(runs)


def judge_ablation(_: Runs, rows: Rows) -> Judged:
    """Say how many points each part is worth, most first."""
    notes = {}
    for partition in _PARTITIONS:
        whole, *others = (row for row in rows if row["case"].startswith(f"{partition}, "))
        for who in ("clients", "server"):
            cost = {
                one["case"].removeprefix(f"{partition}, "): whole[who] - one[who]
                for one in others
                if one[who] is not None
            }
            notes[f"{partition}, {who}, points lost"] = ", ".join(
                f"{name} {100 * cost[name]:.1f}" for name in sorted(cost, key=lambda n: -cost[n])
            )
    return [], notes


@dataclass(frozen=True, slots=True)
class RealImages(ClassMeanImages):
    """Real images where dreams begin; their own labels are not looked at. float32, (N, C, H, W)."""

    all: Tensor

    def draw(self, count: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``count`` images, and what is taken for their classes."""
        rows = torch.randperm(len(self.all), generator=noise)[:count]
        return self.all[rows], torch.zeros(count, dtype=torch.int64)


def real_images(options: Mapping[str, Any]) -> dict[str, Any]:
    """Deal the first half of the training part, and begin dreams at pictures of the second."""
    whole = load_dataset(options["dataset"], Path("data"))
    half = len(whole.x_train) // 2
    dealt = dataclasses.replace(whole, x_train=whole.x_train[:half], y_train=whole.y_train[:half])
    unseen = torch.from_numpy(whole.x_train[half:])
    return {"dataset": dealt, "images": RealImages(unseen[:1], unseen)}


def ceiling(grid: Grid, seeds: int, folder: Path) -> Report | None:
    """Train each architecture on everybody's examples at once."""
    names = ("dataset", "clients", "samples_per_client")
    options = located({name: UNEQUAL[name] for name in names}, folder)
    if options is None:
        return None
    rows: list[dict[str, Any]] = []
    for model in FOUR.split(","):
        found = []
        for seed in range(seeds):
            chosen = {**options, "models": model, "seed": seed}
            cell = baseline_cell(grid, chosen, "centralized", Budget("rounds", UNEQUAL["rounds"]))
            found.append(cell.needed().reported.server or 0.0)
        rows.append({"model": model, "seeds": seeds, "centralized": statistics.mean(found)})
    average = statistics.mean(row["centralized"] for row in rows)
    notes = {"mean of the four": f"{average:.3f}"} | environment("torch")
    return Report(
        "Fashion-MNIST: what each of the four architectures learns from all 1,000 examples at once",
        rows,
        notes=notes,
    )


_PARTITIONS = ("iid", "dirichlet:0.5")
_WHOLE = {"adaptive": "jsd"}
_VARIANTS: dict[str, dict[str, Any]] = {
    "all": _WHOLE,
    "without R_adv": {},
    "without R_bn": {**_WHOLE, "bn_weight": 0.0},
    # And without R_adv: there is no server whose student could be asked.
    "without collaboration": {"collaboration": False},
}
PARTS = {
    "fast": Part(
        "Digits, ten skewed clients: pixels, and a generator with as many dreams or with half.",
        {
            "pixels": SKEWED,
            "fast, as many dreams": {**FAST, "dreams": 128},
            "fast, half of the dreams": FAST,
            "the same, batches side by side": {**FAST, "parallel_batches": True},
        },
        judge_fast,
    ),
    "bits": Part(
        "Digits, ten skewed clients: bits of one coordinate; 16 stand for floats.",
        {f"{count} bits": {**SKEWED, "bits": count} for count in (1, 2, 3, 4, 8, 16)},
        alone=False,
    ),
    "ablation": Part(
        "Digits, ten clients, iid and skewed: what each part of the method is worth (Table 5).",
        {
            f"{partition}, {name}": {"partition": partition, **options}
            for partition in _PARTITIONS
            for name, options in _VARIANTS.items()
        },
        judge_ablation,
        alone=False,
    ),
    "long": Part(
        "Digits, dirichlet:0.1: a hundred rounds of fast mode with adaptive teaching.",
        {"100 rounds": LONG},
        judge_long,
        seeds=1,
    ),
    **{
        name: Part(
            f"Fashion-MNIST, {options['partition']}, four clients of four architectures with 250 "
            "examples each.",
            {options["partition"]: options},
            gains(0.08),
        )
        for name, options in (("unequal", UNEQUAL), ("unequal_iid", UNEQUAL_IID))
    },
    "real": Part(
        "Fashion-MNIST, iid: 512 real pictures a round, which nobody has, in place of dreams.",
        {"real pictures, which no option gives": NOT_OF_DREAMS},
        lambda runs, _: (
            [],
            {"gain": f"{100 * gain(*runs.values()):.1f} points", **curves(runs)},
        ),
        more=real_images,
    ),
    "cifar10": Part(
        "CIFAR-10, four clients with 1,000 examples each.", {"resnet8, iid": CIFAR}, gains(0.0)
    ),
}


def main() -> None:
    """Run the parts."""
    names = [*PARTS, "ceiling"]
    arguments = parser(
        __doc__, "part fast, one seed, little of everything", only=names, seeds=3, data_folder=True
    )
    options = arguments.parse_args()
    seeds = 1 if options.quick else options.seeds

    def run(name: str, grid: Grid) -> Report | None:
        if name == "ceiling":
            return ceiling(grid, seeds, options.data_folder)
        return PARTS[name].report(grid, seeds, options.data_folder, quick=options.quick)

    run_parts(["fast"] if options.quick else options.only or names, run, options, "codream_")


if __name__ == "__main__":
    main()
