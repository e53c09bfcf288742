"""What CoDream gives here: accuracy against bytes, unequal models, small images, bits, long runs.

    python -m benchmarks.learning.codream_results                       every part, hours on 2 cores
    ... --only bits long      some parts
    ... --quick               digits alone, one seed, two rounds
    ... --record              write results/codream_*.txt, .json

Test accuracies of the round that validation chose (`Observer.reported`); `independent, best` is the
best round of independent training, chosen on the test part in its favour. Settings were chosen on
folds and held-out halves of training parts (digits_choices.py; docs/codream.md), never on these
test parts. Masks are on; what a row differs in from the defaults of `codream-secure simulate`
stands beside it as its command line. `unequal`, `unequal_iid`, `ceiling`, `real` and `cifar10` read
.npz subsets of Fashion-MNIST and CIFAR-10 from --data-folder (x_train, y_train, x_test, y_test;
uint8) and are left out without.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.runs import command
from benchmarks.shared.federations import digits
from benchmarks.shared.gates import Gate, environment, progress, report
from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.compare.plan import Budget
from codream_secure.config.methods import parse_method
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.federation.simulation import Simulation
from codream_secure.privacy.class_means import ClassMeanImages
from codream_secure.runs.formats import Summary
from codream_secure.runs.summary import summarise

RESULTS = Path(__file__).parents[1] / "results"
SKEWED = {"partition": "dirichlet:0.5"}
FAST = {**SKEWED, "method": "codream-fast"}
FOUR = "lenet5,resnet8,wrn16-1,mlp"
UNEQUAL: dict[str, Any] = {
    "dataset": "fashion-mnist-12k.npz",
    "clients": 4,
    "samples_per_client": 250,
    "models": FOUR,
    "method": "codream-fast",
    "rounds": 20,
    "dreams": 128,
    "statistics_momentum": 0.9,
    "dream_steps": 10,
    "generator_lr": 0.02,
    "tv_weight": 1.0,
    "kd_temperature": 2.0,
    "kd_epochs": 10,
    "buffer": 8,
    "precision": "bf16",
}
# Chosen on a held-out half of the training part (one seed): more steps a batch, all dreams kept.
UNEQUAL_IID = {**UNEQUAL, "rounds": 10, "dream_steps": 30, "kd_epochs": 6, "buffer": 40}
CIFAR = {
    "dataset": "cifar10-12k.npz",
    "clients": 4,
    "samples_per_client": 1000,
    "models": "resnet8",
    "method": "codream-fast",
    "rounds": 8,
    "dreams": 128,
    "dream_steps": 10,
    "generator_lr": 0.02,
    "kd_epochs": 10,
    "buffer": 8,
    "precision": "bf16",
}
LONG = {
    "partition": "dirichlet:0.1",
    "method": "codream-fast",
    "rounds": 100,
    "adaptive": "jsd",
    "kd_epochs": 4,
}


@dataclass(frozen=True)
class Outcome:
    """One run: its summary, and accuracies and bytes of a client, both ways, after every round."""

    summary: Summary
    clients: list[float]
    independent: list[float]
    sent: list[int]

    def accuracy(self, name: str) -> float:
        """Return one accuracy of the reported round."""
        return float(getattr(self.summary.accuracy, name))

    @property
    def has_server(self) -> bool:
        """Whether there was a server: nobody has one who dreams alone."""
        return self.summary.accuracy.server is not None

    @property
    def gain(self) -> float:
        """Clients above independent training in the reported round."""
        return self.accuracy("clients_mean") - self.accuracy("independent_mean")

    @property
    def least_gain(self) -> float:
        """Clients above the best round of independent training."""
        return self.accuracy("clients_mean") - max(self.independent)


@dataclass(frozen=True, slots=True)
class RealImages(ClassMeanImages):
    """Real images where dreams begin; their own labels are not looked at. float32, (N, C, H, W)."""

    all: Tensor

    def draw(self, count: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``count`` images, and what is taken for their classes."""
        rows = torch.randperm(len(self.all), generator=noise)[:count]
        return self.all[rows], torch.zeros(count, dtype=torch.int64)


def run(
    options: Mapping[str, object],
    dataset: Dataset,
    *,
    alone: bool = True,
    images: ClassMeanImages | None = None,
) -> Outcome:
    """Run one federation to its end, and its clients alone beside it."""
    progress(command(options))
    simulation = Simulation(
        Config.from_options(options), dataset=dataset, compare_independent=alone
    )
    for group in simulation.groups:
        group.images = images
    clients, independent, sent = [], [], []
    for measurement in simulation.rounds():
        clients.append(measurement.clients_mean)
        if alone:
            independent.append(measurement.independent_mean)
        sent.append(simulation.ledger.per_client("up") + simulation.ledger.per_client("down"))
    return Outcome(summarise(simulation), clients, independent, sent)


def row(name: str, options: Mapping[str, object], runs: list[Outcome]) -> dict[str, Any]:
    """Return what a table shows of the runs of one setting over seeds."""
    clients = [r.accuracy("clients_mean") for r in runs]
    mean = {
        title: statistics.mean(values) if values else None
        for title, values in {
            "clients": clients,
            "server": [r.accuracy("server") for r in runs if r.has_server],
            "independent": [r.accuracy("independent_mean") for r in runs if r.independent],
            "independent, best": [max(r.independent) for r in runs if r.independent],
            "personal": [r.accuracy("personal_mean") for r in runs],
        }.items()
    }
    return {
        "case": name,
        "seeds": len(runs),
        **mean,
        "spread of seeds": max(abs(value - statistics.mean(clients)) for value in clients),
        "MB up": runs[0].summary.bytes.per_client_up / 1e6,
        "MB down": runs[0].summary.bytes.per_client_down / 1e6,
        "round trips": runs[0].summary.protocol.round_trips,
        "seconds": max(r.summary.seconds.total for r in runs),
        "command": command(options),
    }


# Rows, gates, and notes such as a curve.
Part = tuple[list[dict[str, Any]], list[Gate], dict[str, str]]


@dataclass(frozen=True)
class Bench:
    """What the parts share."""

    seeds: range
    folder: Path
    quick: bool

    def over_seeds(
        self,
        options: Mapping[str, object],
        dataset: Dataset,
        *,
        alone: bool = True,
        images: ClassMeanImages | None = None,
    ) -> list[Outcome]:
        """Run a setting once a seed."""
        shorter = {"rounds": 2, "kd_epochs": 5} if self.quick else {}
        return [
            run({**options, **shorter, "seed": s}, dataset, alone=alone, images=images)
            for s in self.seeds
        ]

    def load(self, options: Mapping[str, object]) -> Dataset | None:
        """Return the dataset of the folder; None if it is not there."""
        path = self.folder / str(options["dataset"])
        return load_dataset(str(path), Path("data")) if path.is_file() else None


def fast(bench: Bench) -> Part:
    """Digits, ten skewed clients: pixels, and a generator with as many dreams or with half."""
    cases = {
        "pixels": SKEWED,
        "fast, as many dreams": {**FAST, "dreams": 128},
        "fast, half of the dreams": FAST,
        "the same, batches side by side": {**FAST, "parallel_batches": True},
    }
    runs = {name: bench.over_seeds(options, digits()) for name, options in cases.items()}
    rows = [row(name, cases[name], runs[name]) for name in cases]
    curves = {f"curve, {name}": curve(outcomes) for name, outcomes in runs.items()}
    half = runs["pixels"][0].sent[-1] / 2
    affordable = sum(sent <= half for sent in runs["fast, half of the dreams"][0].sent)
    reached = [r.clients[affordable - 1] for r in runs["fast, half of the dreams"] if affordable]
    return (
        rows,
        [
            Gate.at_least("pixels: clients", rows[0]["clients"], 0.87),
            Gate.at_least(
                f"fast, half of the dreams: clients after round {affordable}, the last within half "
                "of the bytes of pixels",
                statistics.mean(reached) if reached else 0.0,
                0.80,
            ),
        ],
        curves,
    )


def curve(runs: list[Outcome]) -> str:
    """Return megabytes of a client both ways and accuracy of the clients, round by round."""
    by_round = zip(*(r.clients for r in runs), strict=True)
    points = zip(runs[0].sent, map(statistics.mean, by_round), strict=True)
    return "; ".join(f"{sent / 1e6:.3f} MB {at:.3f}" for sent, at in points)


def unequal(bench: Bench) -> Part:
    """Fashion-MNIST, dirichlet:1, four clients of four architectures with 250 examples each."""
    return _unequal(bench, {**UNEQUAL, "partition": "dirichlet:1"})


def unequal_iid(bench: Bench) -> Part:
    """Fashion-MNIST, iid, four clients of four architectures with 250 examples each."""
    return _unequal(bench, {**UNEQUAL_IID, "partition": "iid"})


def _unequal(bench: Bench, options: Mapping[str, Any]) -> Part:
    dataset = bench.load(options)
    if not dataset:
        return [], [], {}
    runs = bench.over_seeds(options, dataset)
    gates = gains(options["partition"], runs, 0.08)
    return [row(options["partition"], options, runs)], gates, {"curve": curve(runs)}


def ceiling(bench: Bench) -> Part:
    """Fashion-MNIST: what each of the four architectures learns from all 1,000 examples at once."""
    options = {name: UNEQUAL[name] for name in ("dataset", "clients", "samples_per_client")}
    dataset = bench.load(options)
    if not dataset:
        return [], [], {}
    method = parse_method("centralized")
    rows = []
    for model in FOUR.split(","):
        progress(f"centralized, {model}")
        found = []
        for seed in bench.seeds:
            config = Config.from_options({**options, "models": model, "seed": seed})
            trained = BaselineRun(config, method, BaselineSettings(), dataset=dataset)
            for _ in Budget("rounds", UNEQUAL["rounds"]).limited(trained):
                pass
            reported = trained.observer.reported()
            found.append((reported and reported.server) or 0.0)
        rows.append({"model": model, "seeds": len(found), "centralized": statistics.mean(found)})
    mean = statistics.mean(row["centralized"] for row in rows)
    return rows, [], {"mean of the four": f"{mean:.3f}"}


def real(bench: Bench) -> Part:
    """Fashion-MNIST, iid: 512 real pictures a round, which nobody has, in place of dreams."""
    of_dreams = ("method", "statistics_momentum", "generator_lr", "tv_weight")
    options = {name: value for name, value in UNEQUAL.items() if name not in of_dreams}
    options |= {"dream_batches": 4, "dream_steps": 0}
    dataset = bench.load(options)
    if not dataset:
        return [], [], {}
    half = len(dataset.x_train) // 2
    dealt = dataclasses.replace(
        dataset, x_train=dataset.x_train[:half], y_train=dataset.y_train[:half]
    )
    unseen = torch.from_numpy(dataset.x_train[half:])
    images = RealImages(unseen[:1], unseen)
    runs = bench.over_seeds(options, dealt, images=images)
    gain = statistics.mean(r.gain for r in runs)
    notes = {"gain": f"{100 * gain:.1f} points", "curve": curve(runs)}
    return [row("real pictures, which no option gives", options, runs)], [], notes


def cifar10(bench: Bench) -> Part:
    """CIFAR-10, four clients with 1,000 examples each."""
    dataset = bench.load(CIFAR)
    if not dataset:
        return [], [], {}
    runs = bench.over_seeds(CIFAR, dataset)
    gates = gains("cifar10, iid", runs, 0.0)
    return [row("resnet8, iid", CIFAR, runs)], gates, {"curve": curve(runs)}


def gains(name: str, runs: list[Outcome], bound: float) -> list[Gate]:
    """Return the targets for what clients gain over independent training."""
    return [
        Gate.at_least(f"{name}: gain", statistics.mean(r.gain for r in runs), bound),
        Gate.at_least(
            f"{name}: gain over independent's best round",
            statistics.mean(r.least_gain for r in runs),
            bound,
        ),
    ]


def bits(bench: Bench) -> Part:
    """Digits, ten skewed clients: bits of one coordinate; 16 stand for floats."""
    cases = {f"{count} bits": {**SKEWED, "bits": count} for count in (1, 2, 3, 4, 8, 16)}
    found = {name: bench.over_seeds(o, digits(), alone=False) for name, o in cases.items()}
    return [row(name, cases[name], runs) for name, runs in found.items()], [], {}


def ablation(bench: Bench) -> Part:
    """Digits, ten clients, iid and skewed: what each part of the method is worth (Table 5)."""
    whole = {"adaptive": "jsd"}
    cases = {
        "all": whole,
        "without R_adv": {},
        "without R_bn": {**whole, "bn_weight": 0.0},
        # And without R_adv: there is no server whose student could be asked.
        "without collaboration": {"collaboration": False},
    }
    rows, notes = [], {}
    for partition in ("iid", "dirichlet:0.5"):
        found = []
        for name, options in cases.items():
            chosen = {"partition": partition, **options}
            runs = bench.over_seeds(chosen, digits(), alone=False)
            found.append(row(f"{partition}, {name}", chosen, runs))
        for who in ("clients", "server"):
            cost = {
                name: found[0][who] - one[who]
                for name, one in zip(cases, found, strict=True)
                if one is not found[0] and one[who] is not None
            }
            order = sorted(cost, key=lambda n: -cost[n])
            notes[f"{partition}, {who}, points lost"] = ", ".join(
                f"{n} {100 * cost[n]:.1f}" for n in order
            )
        rows += found
    return rows, [], notes


def long(bench: Bench) -> Part:
    """Digits, dirichlet:0.1: a hundred rounds of fast mode with adaptive teaching."""
    runs = [run({**LONG, "seed": 0, **({"rounds": 3} if bench.quick else {})}, digits())]
    summary = runs[0].summary
    last = statistics.mean(runs[0].clients[-5:])
    return (
        [row("100 rounds", LONG, runs)],
        [
            Gate.at_least("rounds finished", summary.rounds_finished, summary.rounds),
            Gate.at_most("steps taken back", summary.dreaming.rolled_back, 0),
            Gate.at_least("last five rounds above the first", last - runs[0].clients[0], 0.0),
        ],
        {"curve": curve(runs)},
    )


PARTS: dict[str, Callable[[Bench], Part]] = {
    "fast": fast,
    "bits": bits,
    "ablation": ablation,
    "long": long,
    "unequal": unequal,
    "unequal_iid": unequal_iid,
    "ceiling": ceiling,
    "real": real,
    "cifar10": cifar10,
}


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="part fast, one seed, two rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--record", action="store_true", help="also write results/")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--data-folder", type=Path, default=Path("data"))
    options = parser.parse_args()
    bench = Bench(range(1 if options.quick else options.seeds), options.data_folder, options.quick)
    failed, done = False, False
    for name in ["fast"] if options.quick else options.only:
        rows, gates, notes = PARTS[name](bench)
        if not rows:
            progress(f"{name}: no data in {bench.folder}, left out")
            continue
        done = True
        save = RESULTS / f"codream_{name}" if options.record else None
        try:
            report(
                PARTS[name].__doc__ or name,
                rows,
                gates,
                as_json=options.json,
                notes=notes | environment("torch"),
                save=save,
            )
        except SystemExit:
            failed = True
    if not done:
        parser.exit(2, "nothing was run: name the folder of the .npz files with --data-folder\n")
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
