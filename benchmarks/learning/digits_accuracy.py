"""Accuracy on the digits' test part against the project's targets, ten clients, masks on.

    python -m benchmarks.learning.digits_accuracy            three seeds, about 6 minutes on 2 cores
    python -m benchmarks.learning.digits_accuracy --quick    one seed, little of everything
    python -m benchmarks.learning.digits_accuracy --json     each figure beside its target

All settings are the defaults of `codream-secure simulate`; they were chosen on folds of the
training part (digits_choices.py). Under DP the noise is seeded here so that figures can be
reproduced: an experiment, not a release.
"""

from typing import Any

from benchmarks.shared.federations import QUICK, Outcome, mean, over_seeds
from benchmarks.shared.gates import Gate, Report
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import finish, parser

CASES: dict[str, dict[str, object]] = {
    "no DP, iid": {},
    "no DP, dirichlet:0.5": {"partition": "dirichlet:0.5"},
    "eps 8, iid": {"dp_eps": 8.0},
}
# At least: accuracy of the clients, and how far above each alone.
TARGETS = {
    "no DP, iid": (0.94, None),
    "no DP, dirichlet:0.5": (0.83, 0.12),
    "eps 8, iid": (0.85, 0.0),
}


def row(case: str, runs: list[Outcome]) -> dict[str, Any]:
    """Return what the table shows of a case."""
    all_of = [one.summary for one in runs]
    private = [one.privacy.epsilon for one in all_of if one.privacy]
    return {
        "case": case,
        "seeds": len(runs),
        "clients": mean(runs, "clients_mean"),
        "client std": mean(runs, "clients_std"),
        "server": mean(runs, "server"),
        "independent": mean(runs, "independent_mean"),
        "epsilon": max(private) if private else "-",
        "kB up": all_of[0].bytes.per_client_up / 1000,
        "kB down": all_of[0].bytes.per_client_down / 1000,
        "seconds": max(one.seconds.total for one in all_of),
        "masking share": max(one.seconds.secure_aggregation / one.seconds.total for one in all_of),
    }


def gates(row: dict[str, Any]) -> list[Gate]:
    """Return the targets of a row."""
    name = row["case"]
    clients, above = TARGETS[name]
    found = [Gate.at_least(f"{name}: clients", row["clients"], clients)]
    if above is not None:
        gain = row["clients"] - row["independent"]
        found.append(Gate.at_least(f"{name}: clients above independent", gain, above))
    label = f"{name}: share of wall time in secure aggregation"
    return [*found, Gate.below(label, row["masking share"], 0.25)]


def main() -> None:
    """Run the cases and compare."""
    options = parser(__doc__, "one seed, little of everything", record=False).parse_args()
    grid, rows = Grid(options.keep), []
    for name, case in CASES.items():
        settings = {**case, **QUICK} if options.quick else case
        rows.append(row(name, over_seeds(grid, settings, range(1 if options.quick else 3))))
    found = [gate for row in rows for gate in gates(row)]
    report = Report("digits, 10 clients, test part", rows, found)
    finish(report.unjudged() if options.quick else report, options)


if __name__ == "__main__":
    main()
