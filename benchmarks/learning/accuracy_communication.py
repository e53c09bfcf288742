"""Accuracy, epsilon and bytes of every method, one row each, beside FedAvg.

    python -m benchmarks.learning.accuracy_communication             every part, hours on 2 cores
    ... --only digits_skewed    some parts
    ... --quick                 digits_skewed, one seed, short
    ... --record                also write results/compare_PART.txt, .json and .png

Every part is one or more `codream-secure compare` runs; the output names their commands. The digits
parts give every method the bytes that CoDream sends; `digits_work` gives every method CoDream's
computation. Accuracies are those of the last round on the test part; step sizes are tuned on
validation at equal trials. `unequal` and `unequal_iid` read Fashion-MNIST from --data-folder and
are left out without it. Under DP the noise is seeded here, so that figures can be reproduced.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.learning.settings import UNEQUAL
from benchmarks.shared.federations import QUICK, method_row
from benchmarks.shared.gates import Gate, Report, environment, progress
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import RESULTS, parser, run_parts
from codream_secure.baselines.base import BaselineSettings
from codream_secure.compare.comparison import Comparison
from codream_secure.compare.plan import Plan
from codream_secure.runs.comparison_folder import compare_command
from codream_secure.runs.comparison_format import ComparisonResult, Match

DREAMING = ("codream", "codream-fast")
AVERAGING = (
    "fedavg",
    "fedavg-8bit",
    "fedavg-secure",
    "fedavg-secure-8bit",
    "fedprox",
    "fedprox-secure",
    "scaffold",
    "scaffold-secure",
    "moon",
    "moon-secure",
)
ALL = (*DREAMING, *AVERAGING, "fedgen", "avgkd", "independent", "centralized")
# `fedmd` labels public noise: a round is so small that equal bytes would be a hundred rounds.
FEW = ("codream", "codream-fast", "fedavg", "fedavg-secure-8bit", "avgkd", "independent")
WORK = (*FEW, "fedmd")


Cases = dict[str, Plan]


def plan(
    methods: Sequence[str],
    options: Mapping[str, object],
    match: Match,
    *,
    seeds: int = 3,
    trials: int = 1,
    target: float | None = None,
) -> Plan:
    """Return what one case runs, with the first ``seeds`` seeds."""
    return Plan(
        methods=tuple(methods),
        seeds=tuple(range(seeds)),
        options=options,
        settings=BaselineSettings(),
        match=match,
        trials=trials,
        target=target,
    )


def digits(partition: str) -> Cases:
    """Return a comparison of all methods on digits."""
    options = {"partition": partition}
    return {partition: plan(ALL, options, "bytes", trials=3, target=0.85)}


def digits_work() -> Cases:
    """Return a comparison at equal computation."""
    options = {"partition": "dirichlet:0.5"}
    chosen = plan(WORK, options, "iterations", trials=3, target=0.85)
    return {"dirichlet:0.5, equal work": chosen}


def private() -> Cases:
    """Return comparisons of private methods."""
    methods = ("codream", "fedavg-secure", "independent")
    return {
        f"iid, epsilon {epsilon:g}": plan(methods, {"dp_eps": epsilon}, "rounds")
        for epsilon in (1.0, 3.0, 8.0)
    }


def clients() -> Cases:
    """Return comparisons of 2 to 24 clients, at a fixed total of data."""
    found = {}
    for count in (2, 4, 8, 12, 24):
        options = {"clients": count, "partition": "dirichlet:0.5"}
        if count > 2:
            name = f"{count} clients"
        else:  # cannot be masked: each would learn the other's
            name, options = f"{count} clients, in the clear", {**options, "secure": False}
        found[name] = plan(("codream", "independent"), options, "iterations")
    return found


def fashion(partition: str, folder: Path) -> Cases | None:
    """Return a comparison of methods that allow different architectures; None without data."""
    path = folder / UNEQUAL["dataset"]
    if not path.is_file():
        return None
    options = {**UNEQUAL, "dataset": str(path), "partition": partition}
    del options["method"]
    chosen = plan(("codream-fast", "avgkd", "independent"), options, "iterations", seeds=1)
    return {f"Fashion-MNIST, {partition}": chosen}


PARTS: dict[str, Callable[[Path], Cases | None]] = {
    "digits_iid": lambda _: digits("iid"),
    "digits_skewed": lambda _: digits("dirichlet:0.5"),
    "digits_very_skewed": lambda _: digits("dirichlet:0.1"),
    "digits_work": lambda _: digits_work(),
    "private": lambda _: private(),
    "unequal": lambda folder: fashion("dirichlet:1", folder),
    "unequal_iid": lambda folder: fashion("iid", folder),
    "clients": lambda _: clients(),
}


def compared(chosen: Plan, folder: Path | None) -> ComparisonResult:
    """Run what is not finished of a comparison; its folder holds its cells."""
    if folder is not None:
        return Comparison(chosen, folder).run()
    with tempfile.TemporaryDirectory() as scratch:
        return Comparison(chosen, Path(scratch)).run()


def rows(case: str, result: ComparisonResult) -> list[dict[str, Any]]:
    """Return a row a method."""
    found = []
    for row in result.rows:
        failed = {cell.failed for cell in row.cells.values() if cell.failed}
        found.append(method_row(case, row.method, row.mean, "; ".join(sorted(failed)) or None))
    return found


def gates(part: str, table: Sequence[Mapping[str, Any]]) -> list[Gate]:
    """Return the targets of a part."""
    at = {(row["case"], row["method"]): row["accuracy"] for row in table}
    if not part.startswith("unequal"):
        return []
    found = []
    for case in dict.fromkeys(row["case"] for row in table):
        ours, theirs = at[case, "codream-fast"], at[case, "avgkd"]
        if ours is not None and theirs is not None:
            found.append(Gate.at_least(f"{case}: CoDream above AvgKD", ours - theirs, 0.0))
    return found


def honest(table: Sequence[Mapping[str, Any]]) -> str:
    """Say in words which methods of the same case CoDream loses to."""
    words = []
    for case in dict.fromkeys(row["case"] for row in table):
        here = [r for r in table if r["case"] == case and r["accuracy"] is not None]
        ours = max((r["accuracy"] for r in here if r["method"].startswith("codream")), default=0.0)
        better = [
            f"{r['method']} {r['accuracy']:.3f}"
            for r in here
            if not r["method"].startswith("codream") and r["accuracy"] > ours
        ]
        words.append(f"{case}: CoDream {ours:.3f} loses to {', '.join(better) or 'nobody'}")
    return "; ".join(words)


def draw(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the accuracy of every method, best first, one panel per case."""
    cases_here = list(dict.fromkeys(row["case"] for row in table))
    width = max(4.0, 4 * len(cases_here))
    figure = Figure(figsize=(width, 1.2 + 0.28 * len(table) / len(cases_here)), layout="tight")
    panels = figure.subplots(1, len(cases_here), squeeze=False, sharex=True)[0]
    for axis, case in zip(panels, cases_here, strict=True):
        here = [row for row in table if row["case"] == case and row["accuracy"] is not None]
        here.sort(key=lambda row: row["accuracy"])
        for place, row in enumerate(here):
            dreams = row["method"].startswith("codream")
            axis.plot(100 * row["accuracy"], place, "D" if dreams else "o", color=f"C{int(dreams)}")
        axis.set_yticks(range(len(here)), [row["method"] for row in here])
        axis.set_title(case, fontsize="medium")
        axis.set_xlabel("test accuracy, %")
        axis.grid(axis="x", alpha=0.4)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the parts."""
    arguments = parser(__doc__, "one part, one seed, short", only=PARTS, data_folder=True)
    arguments.add_argument("--seeds", type=int, help="how many, from 0, in place of a part's own")
    options = arguments.parse_args()

    def shortened(chosen: Plan) -> Plan:
        if options.quick:
            return plan(FEW, {**chosen.options, **QUICK}, chosen.match, seeds=1, target=0.85)
        if options.seeds:
            return dataclasses.replace(chosen, seeds=tuple(range(options.seeds)))
        return chosen

    def run(part: str, grid: Grid) -> Report | None:
        cases = PARTS[part](options.data_folder)
        if cases is None:
            return None
        table, commands = [], {}
        for index, (name, whole) in enumerate(cases.items()):
            chosen = shortened(whole)
            commands[f"command, {name}"] = compare_command(chosen.record())
            progress(commands[f"command, {name}"])
            table += rows(name, compared(chosen, grid.folder and grid.folder / str(index)))
        if options.record:
            draw(table, RESULTS / f"compare_{part}.png")
        notes = commands | {"in words": honest(table)} | environment("torch")
        report = Report(part, table, gates(part, table), notes)
        return report.unjudged() if options.quick else report

    run_parts(
        ["digits_skewed"] if options.quick else options.only or PARTS, run, options, "compare_"
    )


if __name__ == "__main__":
    main()
