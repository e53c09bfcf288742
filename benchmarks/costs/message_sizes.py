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

from pathlib import Path
from typing import Any

from benchmarks.shared.federations import mean, over_seeds
from benchmarks.shared.gates import Gate, Report, environment
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import finish, parser
from codream_secure.aggregation.byte_ledger import megabytes
from codream_secure.compare.round_bytes import (
    draw_crossover,
    dream_bytes,
    dream_formula,
    round_sizes,
)
from codream_secure.runs.sizes_format import Shape

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


def accuracy(grid: Grid, shape: Shape, data: Path, rounds: int) -> dict[str, Any]:
    """Return what a run with exactly these messages reaches."""
    options = {
        "dataset": str(data),
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
    }
    found = over_seeds(grid, options, [0], name=setting(shape))
    return {
        "clients": mean(found, "clients_mean"),
        "independent": mean(found, "independent_mean"),
        "MB a round, this run": found[0].summary.bytes.both / rounds / 1e6,
    }


def beside_others() -> str:
    """Return the sizes of all methods at the paper's setting, a model after the other."""
    words = []
    for row in round_sizes(Shape()).rows:
        sizes = (f"{name} {size and round(size, 2)}" for name, size in row.both_ways().items())
        words.append(f"{row.model} ({row.numbers} numbers): {', '.join(sizes)}")
    return "; ".join(words)


def main() -> None:
    """Measure and compare."""
    arguments = parser(__doc__, "no accuracy", data_folder=True)
    arguments.add_argument("--rounds", type=int, default=8, help="of the runs for accuracy")
    options = arguments.parse_args()
    data, grid = options.data_folder / "cifar10-12k.npz", Grid(options.keep)
    rows, gates = [], []
    for shape in SETTINGS:
        by = dream_bytes(shape, fast=True, steps=shape.fast_steps)
        row: dict[str, Any] = {
            "setting": setting(shape),
            "MB up": by["up"] / 1e6,
            "MB down": by["down"] / 1e6,
            "MB": megabytes(by),
            "formula": dream_formula(shape, shape.fast_steps, fast=True) / 1e6,
        }
        reached = dict.fromkeys(("clients", "independent", "MB a round, this run"))
        if data.is_file() and not options.quick:
            reached = accuracy(grid, shape, data, options.rounds)
        rows.append(row | reached)
        if shape.dreams == Shape().dreams:
            gates.append(Gate.at_most(f"{setting(shape)}: MB both ways", row["MB"], 10.0))
    if options.record:
        draw_crossover(Shape(), PICTURE)
    notes = {"beside others, MB": beside_others(), **environment("torch")}
    finish(Report("codream-fast, a round and client", rows, gates, notes), options, "message_sizes")


if __name__ == "__main__":
    main()
