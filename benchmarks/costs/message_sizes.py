"""Megabytes of a round at the paper's shapes, from encoded messages, and what they buy.

    python -m benchmarks.costs.message_sizes  sizes, and accuracy at exactly these settings
    ... --quick     sizes alone
    ... --json      each figure beside its target
    ... --record    write results/message_sizes.* and the picture

4 and 10 clients; 5 batches of 256 dreams of 3x32x32 as in the paper, and fewer; R = 1 global step,
whose broadcast also asks for labels; M = 1 local step. Accuracy is that of --rounds rounds on a
subset of CIFAR-10 in --data-folder (left out without), clients of 1,000 examples each (4 clients)
or 400 (10), resnet8, iid, one seed: a first impression, not a study.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.shared.gates import Gate, environment, progress, report
from codream_secure.aggregation.byte_ledger import megabytes
from codream_secure.compare.round_bytes import (
    Shape,
    bytes_by_model,
    draw_crossover,
    dream_bytes,
    dream_formula,
)
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.federation.simulation import Simulation
from codream_secure.runs.summary import summarise

RESULTS = Path(__file__).parents[1] / "results"
PICTURE = Path(__file__).parents[2] / "docs" / "crossover.png"
SETTINGS = (
    Shape(),
    Shape(clients=10),
    Shape(bits=1),
    Shape(dreams=128),
    Shape(dreams=64),
    Shape(dreams=64, bits=1, batches=2),
)


def setting(shape: Shape) -> str:
    """Return what a size depends on."""
    return (
        f"n = {shape.clients}, {shape.batches} x {shape.dreams} dreams, q = {shape.bits}, "
        f"R = {shape.fast_steps}, M = 1"
    )


def accuracy(shape: Shape, data: Dataset, rounds: int) -> dict[str, Any]:
    """Return what a run with exactly these messages reaches."""
    options = {
        "clients": shape.clients,
        "samples_per_client": 4000 // shape.clients,
        "method": "codream-fast",
        "label_last_step": True,
        "rounds": rounds,
        "dreams": shape.dreams,
        "dream_batches": shape.batches,
        "dream_steps": shape.fast_steps,
        "bits": shape.bits,
        "label_bits": shape.label_bits,
        "buffer": 4 * shape.batches,
        "kd_epochs": 2,
        "models": "resnet8",
        "seed": 0,
    }
    progress(f"{setting(shape)}: {rounds} rounds")
    simulation = Simulation(Config.from_options(options), dataset=data)
    for _ in simulation.rounds():
        pass
    found = summarise(simulation)
    return {
        "clients": found.accuracy.clients_mean,
        "independent": found.accuracy.independent_mean,
        "MB a round, this run": found.bytes.both / rounds / 1e6,
    }


def beside_others() -> str:
    """Return the sizes of all methods at the paper's setting, a model after the other."""
    words = []
    for row in bytes_by_model(Shape())["rows"]:
        values = {
            name: round(megabytes(value), 2) if isinstance(value, dict) else value
            for name, value in row.items()
        }
        words.append(", ".join(f"{name} {value}" for name, value in values.items()))
    return "; ".join(words)


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no accuracy")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--record", action="store_true", help="also write results/")
    parser.add_argument("--rounds", type=int, default=8, help="of the runs for accuracy")
    parser.add_argument("--data-folder", type=Path, default=Path("data"))
    options = parser.parse_args()
    path = options.data_folder / "cifar10-12k.npz"
    data = None if options.quick or not path.is_file() else load_dataset(str(path), Path("data"))
    rows, gates = [], []
    for shape in SETTINGS:
        by = dream_bytes(shape, fast=True, steps=shape.fast_steps)
        both = megabytes(by)
        row = {"setting": setting(shape), "MB up": by["up"] / 1e6, "MB down": by["down"] / 1e6}
        said = dream_formula(shape, shape.fast_steps, fast=True) / 1e6
        reached = dict.fromkeys(("clients", "independent", "MB a round, this run"))
        if data is not None:
            reached = accuracy(shape, data, options.rounds)
        rows.append(row | {"MB": both, "formula": said} | reached)
        if shape.dreams == Shape().dreams:
            gates.append(Gate.at_most(f"{setting(shape)}: MB both ways", both, 10.0))
    if options.record:
        draw_crossover(Shape(), PICTURE)
    report(
        "codream-fast, a round and client",
        rows,
        gates,
        as_json=options.json,
        notes={"beside others, MB": beside_others(), **environment("torch")},
        save=RESULTS / "message_sizes" if options.record else None,
    )


if __name__ == "__main__":
    main()
