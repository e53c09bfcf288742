"""Memory, open files and threads of long runs, and the size of their folders.

    python -m benchmarks.costs.long_runs  1,000 tiny rounds, and 200 of fast mode
    ... --quick     40 and 10 rounds: no ratio is judged
    ... --json      each figure beside its target
    ... --record    write results/long_runs.*

Each run has a process of its own. What it holds is measured after every round; the ratio is that of
the last tenth of the rounds to the second tenth (medians). The first tenth is left out: what is
loaded and allocated once is not growth.
"""

import multiprocessing
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.shared.gates import Gate, Report, environment
from benchmarks.shared.script import finish, parser

MIB, PAGE = 2**20, 4096
TINY = {
    "clients": 3,
    "models": "linear",
    "samples_per_client": 20,
    "warmup_epochs": 1,
    "dreams": 4,
    "dream_steps": 1,
    "kd_epochs": 1,
    "checkpoint_every": 50,
    "seed": 0,
}
RUNS = {
    "tiny": (1000, 40, TINY),
    "fast": (200, 10, TINY | {"method": "codream-fast", "models": "lenet5", "dreams": 64}),
}


def held() -> tuple[float, int, int]:
    """Return resident memory in MiB, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    return pages * PAGE / MIB, files, threading.active_count()


def measure(options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return what a run holds early and late, and the size of its folder."""
    import codream_secure as cs  # noqa: PLC0415 - in the process of the run alone

    found: list[tuple[float, int, int]] = []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        options = options | {"rounds": rounds, "out": folder}
        cs.simulate("digits", on_round=lambda _: found.append(held()), **options)
        sizes = {p.name: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    tenth = max(rounds // 10, 1)
    early, late = (
        [statistics.median(one[which] for one in part) for which in range(3)]
        for part in (found[tenth : 2 * tenth], found[-tenth:])
    )
    return {
        "rounds": rounds,
        "MiB early": round(early[0], 1),
        "MiB late": round(late[0], 1),
        "files early": early[1],
        "files late": late[1],
        "threads early": early[2],
        "threads late": late[2],
        "folder MB": round(sum(sizes.values()) / 1e6, 3),
        "of it kB a round": round(sizes["metrics.jsonl"] / rounds / 1e3, 3),
    }


def main() -> None:
    """Measure both runs."""
    options = parser(__doc__, "few rounds, no ratio is judged").parse_args()
    rows, gates = [], []
    for name, (many, few, settings) in RUNS.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (settings, few if options.quick else many))
        rows.append({"run": name, **row})
        if options.quick:
            continue
        ratio = row["MiB late"] / row["MiB early"]
        gates.append(Gate.at_most(f"{name}: memory, late to early", ratio, 1.1))
        for kind in ("files", "threads"):
            more = row[f"{kind} late"] - row[f"{kind} early"]
            gates.append(Gate.at_most(f"{name}: {kind}, late less early", more, 0))
    title = "what long runs hold"
    finish(Report(title, rows, gates, environment("torch")), options, "long_runs")


if __name__ == "__main__":
    main()
