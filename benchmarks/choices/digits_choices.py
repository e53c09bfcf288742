"""Why the defaults are what they are: choices compared on folds of the digits' training part.

    python -m benchmarks.choices.digits_choices  all tables, two folds, 25 minutes on 2 cores
    ... --quick     the bits table, one fold, little of everything
    ... --only bits labels

The test part is never touched. A row's name says how it differs from the defaults of
`codream-secure simulate`; the number of rounds differs too. Without DP masks are off, which changes
no bit of the result (tests/codream_secure/federation/test_simulation.py). A row trains on 80 % of
the training part, so its accuracies are lower than those of digits_accuracy.py.
"""

from typing import Any

from benchmarks.shared.federations import QUICK, digits, fold, mean, over_seeds
from benchmarks.shared.gates import Report, progress
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import finish, parser

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


def row(grid: Grid, name: str, settings: dict[str, Any], folds: int) -> dict[str, Any]:
    """Run one choice on every fold."""
    # Under DP class means need masks; else masks change no bit.
    chosen, runs = {**settings, "secure": "dp_eps" in settings}, []
    for index in range(folds):
        data = fold(digits(), index)
        runs += over_seeds(grid, chosen, [index], name=f"fold {index}", dataset=data)
    accuracies = {"clients": "clients_mean", "server": "server", "independent": "independent_mean"}
    return {"row": name, **{who: mean(runs, key) for who, key in accuracies.items()}}


def main() -> None:
    """Run the tables."""
    options = parser(
        __doc__, "the bits table, little of everything", only=sorted(TABLES), record=False
    ).parse_args()
    grid, folds = Grid(options.keep), 1 if options.quick else 2
    faster = QUICK if options.quick else {}
    everything = []
    for title in ["bits"] if options.quick else options.only or TABLES:
        progress(f"table {title}")
        rows = [row(grid, name, {**s, **faster}, folds) for name, s in TABLES[title].items()]
        everything += [{"table": title, **row} for row in rows]
        if not options.json:
            Report(f"digits, {folds} folds: {title}", rows).show(as_json=False)
    if options.json:
        finish(Report(f"digits, {folds} folds", everything), options)


if __name__ == "__main__":
    main()
