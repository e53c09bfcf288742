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

import argparse
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.learning.codream_results import UNEQUAL
from benchmarks.shared.gates import Gate, environment, progress, report
from codream_secure.baselines.base import BaselineSettings
from codream_secure.compare.comparison import Comparison
from codream_secure.compare.plan import Match, Plan
from codream_secure.runs.comparison_format import ComparisonResult, Means

RESULTS = Path(__file__).parents[1] / "results"
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


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    methods: tuple[str, ...]
    options: Mapping[str, object]
    match: Match = "bytes"
    seeds: int = 3
    trials: int = 3
    target: float | None = None
    fed: Mapping[str, float] = field(default_factory=dict)

    def plan(self) -> Plan:
        """Return what is run."""
        return Plan(
            methods=self.methods,
            seeds=tuple(range(self.seeds)),
            options=self.options,
            settings=BaselineSettings(**self.fed),  # type: ignore[arg-type]
            match=self.match,
            trials=self.trials,
            target=self.target,
        )

    def command(self) -> str:
        """Return the command line that runs it."""
        words = ["codream-secure", "compare", "--methods", ",".join(self.methods)]
        words += ["--seeds", ",".join(map(str, range(self.seeds))), "--match", self.match]
        words += ["--trials", str(self.trials)]
        if self.target is not None:
            words += ["--target", str(self.target)]
        for name, value in self.options.items():
            option = "--" + name.replace("_", "-")
            flags = {True: [option], False: ["--no-" + option[2:]]}
            words += flags[value] if isinstance(value, bool) else [option, str(value)]
        return shlex.join(words)


def digits(partition: str) -> Case:
    """Return a comparison of all methods on digits."""
    return Case(partition, ALL, {"partition": partition}, target=0.85)


def cases(folder: Path) -> dict[str, Sequence[Case]]:
    """Return the parts."""
    fashion = {**UNEQUAL, "dataset": str(folder / str(UNEQUAL["dataset"]))}
    del fashion["method"]
    clients = (2, 4, 8, 12, 24)
    return {
        "digits_iid": [digits("iid")],
        "digits_skewed": [digits("dirichlet:0.5")],
        "digits_very_skewed": [digits("dirichlet:0.1")],
        "digits_work": [
            Case(
                "dirichlet:0.5, equal work",
                WORK,
                {"partition": "dirichlet:0.5"},
                match="iterations",
                target=0.85,
            )
        ],
        "private": [
            Case(
                f"iid, epsilon {eps:g}",
                ("codream", "fedavg-secure", "independent"),
                {"dp_eps": eps},
                match="rounds",
                trials=1,
            )
            for eps in (1.0, 3.0, 8.0)
        ],
        **{
            part: [
                Case(
                    f"Fashion-MNIST, {partition}",
                    ("codream-fast", "avgkd", "independent"),
                    {**fashion, "partition": partition},
                    match="iterations",
                    seeds=1,
                    trials=1,
                )
            ]
            for part, partition in (("unequal", "dirichlet:1"), ("unequal_iid", "iid"))
        },
        # At a fixed total of data; two clients cannot be masked: each would learn the other's.
        "clients": [
            Case(
                f"{count} clients" + (", in the clear" if count == 2 else ""),
                ("codream", "independent"),
                {"clients": count, "partition": "dirichlet:0.5"}
                | ({"secure": False} if count == 2 else {}),
                match="iterations",
                trials=1,
            )
            for count in clients
        ],
    }


def rows(case: Case, result: ComparisonResult) -> list[dict[str, Any]]:
    """Return a row a method; benchmarks of privacy write the same keys."""
    found = []
    for row in result.rows:
        failed = {cell.failed for cell in row.cells.values() if cell.failed}

        def of(name: str, scale: float = 1.0, mean: Means | None = row.mean) -> float | None:
            value = getattr(mean, name, None)
            return None if value is None else value / scale

        found.append(
            {
                "case": case.name,
                "method": row.method,
                "seeds": row.mean.seeds if row.mean else 0,
                "accuracy": of("accuracy"),
                "spread": of("accuracy_spread"),
                "epsilon": of("epsilon"),
                "MB up": of("bytes_up", 1e6),
                "MB down": of("bytes_down", 1e6),
                "MB to target": of("bytes_to_target", 1e6),
                "rounds": of("rounds"),
                "iterations": of("iterations"),
                "seconds": of("seconds"),
                "failed": "; ".join(sorted(failed)) or None,
            }
        )
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
            found.append(Gate.at_least(f"{case}: Co-Dream above AvgKD", ours - theirs, 0.0))
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one part, one seed, short")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--record", action="store_true", help="also write results/")
    parser.add_argument("--only", nargs="+", choices=list(cases(Path())))
    parser.add_argument("--seeds", type=int, help="how many, from 0, in place of a part's own")
    parser.add_argument("--data-folder", type=Path, default=Path("data"))
    parser.add_argument("--keep", type=Path, help="folder to keep runs in, and to go on in")
    options = parser.parse_args()
    parts = cases(options.data_folder)
    failed, done = False, False
    for part in ["digits_skewed"] if options.quick else options.only or parts:
        table: list[dict[str, Any]] = []
        keep = options.keep or Path(tempfile.mkdtemp())
        commands = {}
        for index, case in enumerate(parts[part]):
            dataset = case.options.get("dataset")
            if dataset and not Path(str(dataset)).is_file():
                progress(f"{part}: no data in {options.data_folder}, left out")
                break
            chosen = replace(case, seeds=options.seeds or case.seeds)
            if options.quick:
                shorter = {"rounds": 2, "kd_epochs": 4, "dream_steps": 5, "warmup_epochs": 5}
                chosen = replace(
                    case, methods=FEW, options={**case.options, **shorter}, seeds=1, trials=1
                )
            progress(chosen.command())
            table += rows(chosen, Comparison(chosen.plan(), keep / part / str(index)).run())
            commands[f"command, {chosen.name}"] = chosen.command()
        if not table:
            continue
        done = True
        save = RESULTS / f"compare_{part}" if options.record else None
        if save:
            draw(table, save.with_suffix(".png"))
        notes = commands | {"in words": honest(table)} | environment("torch")
        try:
            report(part, table, gates(part, table), as_json=options.json, notes=notes, save=save)
        except SystemExit:
            failed = True
        if options.keep is None:
            shutil.rmtree(keep)
    if not done:
        parser.exit(2, "nothing was run: name the folder of the .npz files with --data-folder\n")
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
