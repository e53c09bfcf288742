"""Why the defaults are what they are: choices compared on folds of the digits' training part.

    python -m benchmarks.choices.digits_choices  all tables, two folds, 25 minutes on 2 cores
    ... --quick     the bits table with one fold, half the rounds
    ... --only bits labels

The test part is never touched. A row's name says how it differs from the defaults of
`codream-secure simulate`; the number of rounds differs too. Without DP masks are off, which changes
no bit of the result (tests/codream_secure/federation/test_simulation.py). A row trains on 80 % of
the training part, so its accuracies are lower than those of digits_accuracy.py.
"""

import argparse
from typing import Any

from benchmarks.shared.federations import digits, fold, mean, over_seeds
from benchmarks.shared.gates import progress, report

# Four rounds instead of six: the comparison needs no more.
IID = {"rounds": 4}
SKEWED = {**IID, "partition": "dirichlet:0.5"}
FAST = {**SKEWED, "method": "codream-fast"}
PRIVATE = {"dp_eps": 8.0}
CLIENTS = {
    "dp_eps": 8.0,
    "dp_unit": "client",
    "clients": 80,
    "models": "mlp",
    "accept_low_utility": True,
}
STATISTICS = {1.0: (0.0, 0.5, 0.9), 2.0: (0.0, 1.0, 1.8), 8.0: (0.0, 2.0, 4.0, 6.0)}

TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "bits": {
        f"{name}, {bits} bits": {**base, "bits": bits}
        for name, base in (("dirichlet:0.5", SKEWED), ("eps 8", PRIVATE))
        for bits in (1, 2, 3, 4, 8, 16)
    },
    "labels": {
        "probabilities at T (default)": SKEWED,
        "logits": {**SKEWED, "labels": "logits"},
        "probabilities, 4 bits": {**SKEWED, "label_bits": 4},
    },
    "prior correction": {
        "dirichlet:0.5, full": {**SKEWED, "prior_correction": 1.0},
        "dirichlet:0.5, half (default)": SKEWED,
        "dirichlet:0.5, none": {**SKEWED, "prior_correction": 0.0},
        "dirichlet:0.1, full": {**SKEWED, "partition": "dirichlet:0.1", "prior_correction": 1.0},
        "dirichlet:0.1, half (default)": {**SKEWED, "partition": "dirichlet:0.1"},
        "dirichlet:0.1, none": {**SKEWED, "partition": "dirichlet:0.1", "prior_correction": 0.0},
        "iid, full": {**IID, "prior_correction": 1.0},
        "iid, none": {**IID, "prior_correction": 0.0},
    },
    "acquisition": {
        "joint (default)": SKEWED,
        "two-stage, 3 local epochs": {
            **SKEWED,
            "acquisition": "two-stage",
            "local_epochs": 3,
        },
        "joint, iid": IID,
        "two-stage, 3 local epochs, iid": {**IID, "acquisition": "two-stage", "local_epochs": 3},
    },
    "dreaming": {
        "default": SKEWED,
        "without R_bn": {**SKEWED, "bn_weight": 0.0},
        "without class balance": {**SKEWED, "balance_weight": 0.0},
        "without entropy": {**SKEWED, "entropy_weight": 0.0},
        "labelled noise, no dreaming": {**SKEWED, "dream_steps": 0},
        "256 dreams": {**SKEWED, "dreams": 256},
        "step size 0.1": {**SKEWED, "dream_lr": 0.1},
    },
    "fast": {
        "4 batches of 64, 5 steps (default)": FAST,
        "6 rounds": {**FAST, "rounds": 6},
        "batches of 128": {**FAST, "dreams": 128},
        "128, running statistics 0.9": {**FAST, "dreams": 128, "statistics_momentum": 0.9},
        "128, 3 steps": {**FAST, "dreams": 128, "dream_steps": 3},
        "2 of 128, 6 rounds": {**FAST, "dreams": 128, "dream_batches": 2, "rounds": 6},
        "5 of 128, 2 steps, 6 rounds": {
            **FAST,
            "dreams": 128,
            "dream_batches": 5,
            "dream_steps": 2,
            "buffer": 8,
            "rounds": 6,
        },
        "generator step size 0.02": {**FAST, "generator_lr": 0.02},
        "total variation 1": {**FAST, "tv_weight": 1.0},
        "fomaml": {**FAST, "meta": "fomaml"},
    },
    "private": {
        "default": PRIVATE,
        "labelled noise, no dreaming": {**PRIVATE, "dream_steps": 0},
        "20 steps of 0.2": {**PRIVATE, "dream_steps": 20, "dream_lr": 0.2},
        "half of the private steps in the rounds": {**PRIVATE, "dp_warmup": 0.5},
        "linear": {**PRIVATE, "models": "linear"},
        "resnet8, GroupNorm": {**PRIVATE, "models": "resnet8"},
    },
    "statistics": {
        f"eps {total:g}, of which {part:g} for class means": {
            "dp_eps": total,
            "statistics_eps": part,
        }
        for total, parts in STATISTICS.items()
        for part in parts
    },
    # The server's term that keeps dreams near the class means they began at.
    "matching": {
        f"eps {total:g}, weight {weight:g}": {"dp_eps": total, "statistics_weight": weight}
        for total in STATISTICS
        for weight in (0.0, 1.0, 10.0, 100.0)
    },
    "client level": {
        f"80 clients, {rounds} round(s) of {dreams} dreams, {steps} steps": {
            **CLIENTS,
            "rounds": rounds,
            "dreams": dreams,
            "dream_steps": steps,
        }
        for rounds, dreams, steps in (
            (1, 64, 0),
            (1, 128, 0),
            (1, 256, 0),
            (2, 64, 0),
            (2, 64, 20),
            (2, 128, 20),
            (4, 64, 20),
        )
    },
}


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a first impression in 2 minutes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", nargs="+", choices=sorted(TABLES), default=list(TABLES))
    options = parser.parse_args()
    data = digits()
    folds = range(1 if options.quick else 2)
    everything = []
    for title in ["bits"] if options.quick else options.only:
        progress(f"table {title}")
        rows = []
        for name, settings in TABLES[title].items():
            faster = {"rounds": 2, "dream_steps": 10} if options.quick else {}
            # Under DP class means need masks; else masks change no bit.
            chosen = {**settings, **faster, "secure": "dp_eps" in settings}
            runs = over_seeds(chosen, folds, lambda index: fold(data, index))
            rows.append(
                {
                    "row": name,
                    "clients": mean(runs, "clients_mean"),
                    "server": mean(runs, "server"),
                    "independent": mean(runs, "independent_mean"),
                }
            )
        everything += [{"table": title, **row} for row in rows]
        if not options.json:
            report(f"digits, {len(folds)} folds: {title}", rows, [], as_json=False)
    if options.json:
        report(f"digits, {len(folds)} folds", everything, [], as_json=True)


if __name__ == "__main__":
    main()
