"""Accuracy against epsilon: what each way of spending a privacy budget is worth.

    python -m benchmarks.learning.privacy_utility  digits, three seeds, about 15 minutes
    ... --data mnist-10k.npz --eps 1 8 --seeds 1
    ... --quick           digits, one seed, epsilon 1 and 8
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

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.shared.gates import Gate, environment, progress, report
from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.compare.plan import Budget
from codream_secure.compare.results import headline
from codream_secure.config.methods import parse_method
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.federation.run import Run
from codream_secure.federation.simulation import Simulation
from codream_secure.runs.summary import summarise

RESULTS = Path(__file__).parents[1] / "results"
EPSILONS = (1.0, 2.0, 4.0, 8.0, math.inf)
# In place of infinity where there is no way without noise; half of it for class means if any.
LARGEST = {"dp_eps": 100.0}
LARGEST_MEANS = LARGEST | {"statistics_eps": 50.0}
Cell = dict[str, Any]


def dreaming(options: Mapping[str, object], dataset: Dataset) -> Cell:
    """Run CoDream, and independent training beside it."""
    run = Simulation(Config.from_options(options), dataset=dataset)
    last = list(run.rounds())[-1]
    return _cell(run, last.clients_mean) | {"independent": last.independent_mean}


def averaging(options: Mapping[str, object], dataset: Dataset) -> Cell:
    """Run FedAvg under masks for the default number of rounds."""
    return _baseline("fedavg-secure", options, dataset)


def distributed(options: Mapping[str, object], dataset: Dataset) -> Cell:
    """Run DP-SGD on everybody's data, by noisy sums."""
    return _baseline("dpsgd-secure", options, dataset)


def _baseline(name: str, options: Mapping[str, object], dataset: Dataset) -> Cell:
    method = parse_method(name)
    run = BaselineRun(Config.from_options(options), method, BaselineSettings(), dataset=dataset)
    rounds = run.config.dream.rounds or 1
    last = list(Budget("rounds", rounds).limited(run))[-1]
    return _cell(run, headline(last, method))


def _cell(run: Run, accuracy: float) -> Cell:
    summary = summarise(run)
    return {
        "accuracy": accuracy,
        "epsilon": summary.privacy.epsilon if summary.privacy else None,
        "bytes_up": summary.bytes.per_client_up,
        "bytes_down": summary.bytes.per_client_down,
        "rounds": summary.rounds_finished,
        "iterations": summary.iterations,
        "seconds": summary.seconds.busy,
    }


METHODS: dict[str, tuple[Callable[[Mapping[str, object], Dataset], Cell], dict[str, object]]] = {
    "CoDream": (dreaming, {"statistics_eps": 0.0}),
    "CoDream, class means": (dreaming, {}),
    "FedAvg, local DP": (averaging, {}),
    "DP-SGD, distributed noise": (distributed, {}),
}


def options_of(method: str, epsilon: float, seed: int) -> dict[str, object]:
    """Return the settings of a cell."""
    if math.isfinite(epsilon):
        return {"dp_eps": epsilon, "seed": seed, **METHODS[method][1]}
    if method == "CoDream, class means":
        return {**LARGEST_MEANS, "seed": seed}
    if method == "DP-SGD, distributed noise":
        return {**LARGEST, "seed": seed}
    return {"models": "mlp", "seed": seed}


class Cells:
    """Cells that were run, in memory and in a folder."""

    def __init__(self, dataset: Dataset, folder: Path | None) -> None:
        self._dataset, self._folder = dataset, folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, method: str, options: Mapping[str, object]) -> Cell:
        """Return a cell, from the folder if it is there."""
        name = f"{method}-" + "-".join(f"{k}={v}" for k, v in sorted(options.items()))
        path = self._folder / f"{name}.json" if self._folder else None
        if path is not None and path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        progress(name)
        cell = METHODS[method][0](options, self._dataset)
        if path is not None:
            part = path.with_suffix(".part")
            part.write_text(json.dumps(cell), encoding="utf-8")
            part.replace(path)
        return cell


def row(case: str, method: str, cells: list[Cell], key: str = "accuracy") -> dict[str, Any]:
    """Return what a table shows of a cell over seeds."""
    found = [cell[key] for cell in cells]
    alone = key == "independent"
    epsilons = [cell["epsilon"] for cell in cells if cell["epsilon"] is not None]
    return {
        "case": case,
        "method": method,
        "seeds": len(cells),
        "accuracy": statistics.mean(found),
        "spread": (max(found) - min(found)) / 2,
        "epsilon": max(epsilons) if epsilons and not alone else None,
        "MB up": 0.0 if alone else cells[0]["bytes_up"] / 1e6,
        "MB down": 0.0 if alone else cells[0]["bytes_down"] / 1e6,
        "MB to target": None,
        "rounds": cells[0]["rounds"],
        "iterations": None if alone else cells[0]["iterations"],
        "seconds": None if alone else statistics.mean(cell["seconds"] for cell in cells),
        "failed": None,
    }


def table(
    cells: Cells, epsilons: tuple[float, ...], seeds: int, earlier: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return all rows; those in ``earlier`` are taken as they are."""
    kept = {(row["case"], row["method"]): row for row in earlier}
    rows = []
    for epsilon in epsilons:
        case = f"epsilon {epsilon:g}"
        for method in METHODS:
            if (case, method) in kept:
                if method == "CoDream":
                    rows.append(kept[case, "independent"])
                rows.append(kept[case, method])
                continue
            found = [cells.get(method, options_of(method, epsilon, seed)) for seed in range(seeds)]
            if method == "CoDream":
                rows.append(row(case, "independent", found, "independent"))
            rows.append(row(case, method, found))
    return rows


def gates(rows: list[dict[str, Any]], *, digits: bool) -> list[Gate]:
    """Return the targets: at epsilon 8 a level, below it a gain over training alone."""
    at = {(r["case"], r["method"]): r["accuracy"] for r in rows}
    found = []
    for (case, method), accuracy in at.items():
        if method != "CoDream, class means" or case == "epsilon inf":
            continue
        gain = accuracy - at[case, "independent"]
        found.append(Gate.at_least(f"{case}: above independent", gain, 0.08 if digits else 0.0))
        if digits and case == "epsilon 8":
            found.append(Gate.at_least(f"{case}: clients", accuracy, 0.88))
    return found


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, epsilon 1 and 8")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--record", action="store_true", help="also write results/")
    parser.add_argument("--data", type=Path, help="an .npz file in place of the digits")
    parser.add_argument("--eps", type=float, nargs="+", help="which, in place of 1 2 4 8 inf")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, default=[], help="take other rows from results/"
    )
    parser.add_argument("--keep", type=Path, help="folder to keep cells in, and to go on in")
    options = parser.parse_args()
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data {options.data}: there is no such file")
    name = "digits" if options.data is None else options.data.stem
    dataset = load_dataset(str(options.data or "digits"), Path("data"))
    cells = Cells(dataset, options.keep / name if options.keep else None)
    epsilons = (1.0, 8.0) if options.quick else tuple(options.eps or EPSILONS)
    results, notes = RESULTS / f"privacy_utility_{name}", {}
    earlier: list[dict[str, Any]] = []
    if options.only:
        stored = json.loads(results.with_suffix(".json").read_text(encoding="utf-8"))
        earlier = [row for row in stored["rows"] if row["method"] not in options.only]
        notes = {k: v for k, v in stored.items() if k.startswith(("without privacy", "rows from"))}
        notes.setdefault(f"rows from {stored['date']}", stored["command"])
    rows = table(cells, epsilons, 1 if options.quick else options.seeds, earlier)
    if name == "digits" and not options.quick and not options.only:
        best = [cells.get("CoDream", {"seed": seed})["accuracy"] for seed in range(options.seeds)]
        notes["without privacy, its own default model (resnet8): CoDream"] = (
            f"{statistics.mean(best):.3f}"
        )
    report(
        f"accuracy against epsilon: {name}, 10 clients, iid",
        rows,
        gates(rows, digits=name == "digits"),
        as_json=options.json,
        notes=notes | environment("torch"),
        save=results if options.record else None,
    )


if __name__ == "__main__":
    main()
