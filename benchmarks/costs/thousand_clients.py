"""A simulated run of a thousand clients on one machine, with a sparse graph: time and memory.

    python -m benchmarks.costs.thousand_clients      about 15 minutes
    ... --quick         120 clients
    ... --json          JSON
    ... --record        also rewrites the recorded figures

The data are made up, in the shape of the digits: ten patterns of 8 x 8 pixels and noise, thirty
pictures a client. `codream-secure simulate --graph auto` runs as a process of its own, once for
each threat model; its peak memory is the kernel's figure. Every client is computed one after the
other, so a client's share of the time is the time over the number of clients.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared.gates import Gate, Report, environment, progress
from benchmarks.shared.script import finish, parser

EXAMPLES, MIB = 30, 1024  # of a client; ru_maxrss counts KiB
STEPS = 2
MOST_GIB = 4.0
RUN: tuple[str, ...] = (
    "--models",
    "linear",
    "--rounds",
    "1",
    "--dreams",
    "16",
    "--dream-steps",
    str(STEPS),
)
RUN += ("--warmup-epochs", "2", "--kd-epochs", "2", "--validation", "0")


def data(path: Path, clients: int) -> None:
    """Write pictures of ten classes: a pattern each, and noise."""
    draw = np.random.default_rng(0)
    patterns = draw.random((10, 8, 8))

    def some(count: int) -> tuple[Any, Any]:
        labels = draw.integers(0, 10, count)
        pictures = 255 * np.clip(patterns[labels] + draw.normal(0, 0.3, (count, 8, 8)), 0, 1)
        return pictures.astype(np.uint8), labels.astype(np.int64)

    x_train, y_train = some(EXAMPLES * clients)
    x_test, y_test = some(1000)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def measured(folder: Path, clients: int, model: str) -> dict[str, Any]:
    """Run once; return a row."""
    progress(f"{clients} clients, {model}")
    out = folder / model
    command = [sys.executable, "-m", "codream_secure", "simulate", "--dataset"]
    command += [str(folder / "data.npz"), "--clients", str(clients), "--graph", "auto", *RUN]
    command += ["--threat-model", model, "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"simulate ended with {process.returncode}")
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    graph, done = summary["protocol"]["graph"], summary["protocol"]
    return {
        "threat model": model,
        "graph": graph["name"],
        "k": graph["neighbours"],
        "t": graph["needed"],
        "sums": f"{done['steps'] - done['aborted_steps']} of {done['steps']}",
        "kB up": summary["bytes"]["per_client_up"] / 1000,
        "kB down": summary["bytes"]["per_client_down"] / 1000,
        "peak MiB": used.ru_maxrss / MIB,
        "CPU s": used.ru_utime + used.ru_stime,
        "masking wall s": summary["seconds"]["secure_aggregation"],
        "wall s": time.perf_counter() - began,
    }


def main() -> None:
    """Run both threat models and print the table."""
    options = parser(__doc__ or "", "120 clients").parse_args()
    clients = 120 if options.quick else 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data(folder / "data.npz", clients)
        rows = [measured(folder, clients, model) for model in ("semi-honest", "malicious")]
    largest = max(row["peak MiB"] for row in rows)
    gates = [Gate.at_most(f"peak memory of {clients} clients, GiB", largest / MIB, MOST_GIB)]
    notes = environment("numpy", "cryptography", "torch")
    notes |= {"run": f"{clients} clients of {EXAMPLES} pictures: simulate {' '.join(RUN)}"}
    finish(
        Report(f"{clients} clients on one machine", rows, gates, notes), options, "thousand_clients"
    )


if __name__ == "__main__":
    main()
