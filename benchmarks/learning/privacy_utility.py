"""Accuracy against epsilon: what each way of spending a privacy budget is worth.

    python -m benchmarks.learning.privacy_utility  digits, three seeds, about 15 minutes
    ... --data mnist-10k.npz --eps 1 8 --seeds 1
    ... --quick           digits, one seed, epsilon 8, little of everything
    ... --record          write results/privacy_utility_*
    ... --keep DIR        finished cells are not run again
    ... --only METHOD     the other rows are those of results/

Ten clients, iid, the architecture that is the default under DP for all of a curve, infinity
included; the best model without privacy is a line of its own. Class means and sums of gradients
exist with noise alone: at infinity they have epsilon 100, next to no noise. `independent` is each
client alone; `CoDream` without and with the class means that all clients release; `FedAvg, local
DP` averages models that every client trained by DP-SGD; `DP-SGD, distributed noise` sums
everybody's clipped gradients under masks, with noise of all (`dpsgd-secure`). Each has the whole
epsilon for itself, and the public constants of the defaults. Rows have the keys of
accuracy_communication.py. The noise is seeded so that figures can be reproduced: an experiment.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.shared.federations import (
    QUICK,
    Outcome,
    baseline_cell,
    figures_of,
    method_row,
    over_seeds,
)
from benchmarks.shared.gates import Gate, Report, environment
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import RESULTS, check_npz, finish, parser
from codream_secure.compare.plan import Budget
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config

EPSILONS = (1.0, 2.0, 4.0, 8.0, math.inf)
# In place of infinity where there is no way without noise; half of it for class means if any.
LARGEST = {"dp_eps": 100.0}
LARGEST_MEANS = LARGEST | {"statistics_eps": 50.0}


MEANS = "CoDream, class means"
# By row: the method's name, and what differs from the defaults.
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "CoDream": ("codream", {"statistics_eps": 0.0}),
    MEANS: ("codream", {}),
    "FedAvg, local DP": ("fedavg-secure", {}),
    "DP-SGD, distributed noise": ("dpsgd-secure", {}),
}
Row = dict[str, Any]


def options_of(method: str, epsilon: float) -> dict[str, object]:
    """Return the settings of a row."""
    if math.isfinite(epsilon):
        return {"dp_eps": epsilon, **METHODS[method][1]}
    if method == MEANS:
        return dict(LARGEST_MEANS)
    return dict(LARGEST) if method == "DP-SGD, distributed noise" else {"models": "mlp"}


def runs(grid: Grid, name: str, options: dict[str, object], seeds: int) -> list[Outcome]:
    """Run a method once a seed; what does not dream runs as many rounds as CoDream."""
    if name == "codream":
        return over_seeds(grid, options, range(seeds))
    found = []
    for seed in range(seeds):
        seeded = {**options, "seed": seed}
        rounds = resolve(Config.from_options(seeded)).dream.rounds
        found.append(baseline_cell(grid, seeded, name, Budget("rounds", rounds)).needed())
    return found


def alone_row(row: Row, found: list[Outcome]) -> Row:
    """Return the row of the clients that train alone beside CoDream, from CoDream's row."""
    last = [one.independent[-1] for one in found]
    nothing = dict.fromkeys(("epsilon", "iterations", "seconds"))
    return row | nothing | {
        "method": "independent",
        "accuracy": statistics.mean(last),
        "spread": (max(last) - min(last)) / 2,
        "MB up": 0.0,
        "MB down": 0.0,
    }  # fmt: skip


def table(
    grid: Grid, epsilons: tuple[float, ...], seeds: int, data: dict[str, object], earlier: list[Row]
) -> list[Row]:
    """Return all rows; those in ``earlier`` are taken as they are."""
    kept = {(row["case"], row["method"]): row for row in earlier}
    rows = []
    for epsilon in epsilons:
        case = f"epsilon {epsilon:g}"
        for method, (name, _) in METHODS.items():
            if (case, method) in kept:
                rows += [kept[case, "independent"]] if method == "CoDream" else []
                rows.append(kept[case, method])
                continue
            found = runs(grid, name, {**data, **options_of(method, epsilon)}, seeds)
            row = method_row(case, method, figures_of(found, name))
            rows += [alone_row(row, found)] if method == "CoDream" else []
            rows.append(row)
    return rows


def gates(rows: list[dict[str, Any]], *, digits: bool) -> list[Gate]:
    """Return the targets: at epsilon 8 a level, below it a gain over training alone."""
    at = {(r["case"], r["method"]): r["accuracy"] for r in rows}
    found = []
    for (case, method), accuracy in at.items():
        if method != MEANS or case == "epsilon inf":
            continue
        gain = accuracy - at[case, "independent"]
        found.append(Gate.at_least(f"{case}: above independent", gain, 0.08 if digits else 0.0))
        if digits and case == "epsilon 8":
            found.append(Gate.at_least(f"{case}: clients", accuracy, 0.88))
    return found


def main() -> None:
    """Run the table."""
    arguments = parser(__doc__, "one seed, epsilon 8, little of everything", only=METHODS, seeds=3)
    arguments.add_argument("--data", type=Path, help="an .npz file in place of the digits")
    arguments.add_argument("--eps", type=float, nargs="+", help="which, in place of 1 2 4 8 inf")
    options = arguments.parse_args()
    check_npz(arguments, options.data)
    path = options.data
    name, data = (path.stem, {"dataset": str(path)}) if path else ("digits", {})
    grid, seeds = Grid(options.keep), 1 if options.quick else options.seeds
    epsilons = (8.0,) if options.quick else tuple(options.eps or EPSILONS)
    less = QUICK if options.quick else {}
    notes: dict[str, str] = {}
    earlier: list[Row] = []
    record = f"privacy_utility_{name}"
    if options.only:  # the other rows are those of results/
        stored = json.loads((RESULTS / f"{record}.json").read_text(encoding="utf-8"))
        earlier = [row for row in stored["rows"] if row["method"] not in options.only]
        notes = {k: v for k, v in stored.items() if k.startswith(("without privacy", "rows from"))}
        notes.setdefault(f"rows from {stored['date']}", stored["command"])
    rows = table(grid, epsilons, seeds, {**data, **less}, earlier)
    if name == "digits" and not options.quick and not options.only:
        best = statistics.mean(one.clients[-1] for one in runs(grid, "codream", {}, seeds))
        notes["without privacy, its own default model (resnet8): CoDream"] = f"{best:.3f}"
    title = f"accuracy against epsilon: {name}, 10 clients, iid"
    found = Report(title, rows, gates(rows, digits=name == "digits"), notes | environment("torch"))
    finish(found.unjudged() if options.quick else found, options, record)


if __name__ == "__main__":
    main()
