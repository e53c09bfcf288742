"""Accuracy on the digits' test part against the project's targets, ten clients, masks on.

    python -m benchmarks.learning.digits_accuracy            three seeds, about 6 minutes on 2 cores
    python -m benchmarks.learning.digits_accuracy --quick    one seed, three rounds; a gate may miss
    python -m benchmarks.learning.digits_accuracy --json     each figure beside its target

All settings are the defaults of `codream-secure simulate`; they were chosen on folds of the
training part (digits_choices.py). Under DP the noise is seeded here so that figures can be
reproduced: an experiment, not a release.
"""

import argparse

from benchmarks.shared.federations import digits, mean, over_seeds
from benchmarks.shared.gates import Gate, report

CASES = {
    "no DP, iid": {},
    "no DP, dirichlet:0.5": {"partition": "dirichlet:0.5"},
    "eps 8, iid": {"dp_eps": 8.0},
}


def main() -> None:
    """Run the cases and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, three rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    seeds = range(1 if options.quick else 3)
    data = digits()
    rows, gates = [], []
    for name, case in CASES.items():
        settings = {"rounds": 3, **case} if options.quick else case
        runs = over_seeds(settings, seeds, lambda _: data)
        clients, alone = mean(runs, "clients_mean"), mean(runs, "independent_mean")
        share = max(r["seconds"]["secure_aggregation"] / r["seconds"]["total"] for r in runs)
        rows.append(
            {
                "case": name,
                "seeds": len(runs),
                "clients": clients,
                "client std": mean(runs, "clients_std"),
                "server": mean(runs, "server"),
                "independent": alone,
                "epsilon": max(r["privacy"]["epsilon"] for r in runs)
                if runs[0]["privacy"]
                else "-",
                "kB up": runs[0]["bytes"]["per_client_up"] / 1000,
                "kB down": runs[0]["bytes"]["per_client_down"] / 1000,
                "seconds": max(r["seconds"]["total"] for r in runs),
                "masking share": share,
            }
        )
        gates += gates_of(name, clients, alone)
        gates.append(Gate.below(f"{name}: share of wall time in secure aggregation", share, 0.25))
    report("digits, 10 clients, test part", rows, gates, as_json=options.json)


def gates_of(name: str, clients: float, alone: float) -> list[Gate]:
    """Return the targets of one case."""
    if name == "no DP, iid":
        return [Gate.at_least(f"{name}: clients", clients, 0.94)]
    if name == "no DP, dirichlet:0.5":
        return [
            Gate.at_least(f"{name}: clients", clients, 0.83),
            Gate.at_least(f"{name}: clients above independent", clients - alone, 0.12),
        ]
    return [
        Gate.at_least(f"{name}: clients", clients, 0.85),
        Gate.at_least(f"{name}: clients above independent", clients - alone, 0.0),
    ]


if __name__ == "__main__":
    main()
