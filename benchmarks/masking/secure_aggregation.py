"""One secure aggregation beside Flower's SecAgg+, its bytes beside plain ones, and its masks.

    pip install -e '.[bench]'                               flwr, what the comparison runs against
    python -m benchmarks.masking.secure_aggregation  about 15 minutes, nearly all Flower's
    ... --quick         n = 100 beside recorded figures
    ... --json          each gate with both figures
    ... --record        also rewrites the recorded figures

Both do the same work in this process and on one thread: a weighted mean over the complete graph
with threshold floor(2n/3) + 1, semi-honest, at least 2^22 + 1 levels a value. Times are process
CPU time, which other load on the machine disturbs least; wall times stand beside them. Medians
over runs, but Flower runs the hundred clients once. Without flwr its figures are recorded ones.
Beside them stands what the malicious model costs, which Flower does not have.

How many bytes a client moves over its plain input is counted from encoded messages and compared
with the headline of Bonawitz et al. 2017, at its sizes (`expansion.py`).

The k-regular ring has no counterpart there: up to 1,000 clients (with --quick 200), each case once,
the server's memory measured in a process of its own (`ring.py`); --record also draws the figures.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.masking import expansion, ring
from benchmarks.masking.flower_peer import flower, installed
from benchmarks.masking.one_sum import Case, Figures, ours, ours_malicious
from benchmarks.shared.gates import Comparison, Report, environment, progress
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import RESULTS, finish, parser
from protocols.primitives import prg
from protocols.primitives.field import PrimeField

RECORDED = Path(__file__).with_name("flower_recorded.json")

LONG = Case(10, 1_000_000)
WIDE = Case(100, 100_000)
DROPS = Case(100, 100_000, dropouts=10)
CASES = (LONG, WIDE, DROPS)
MALICIOUS = (LONG, WIDE)

MASKS = 10  # what a client of ten adds: nine pair masks and its self mask
MASK_LENGTH = 1_000_000
CHUNK = 1 << 16

C = TypeVar("C", bound=Case)


def main() -> None:
    """Run the cases and compare."""
    options = parser(__doc__, "a minute; recorded slow figures").parse_args()
    grid, runs, cases = Grid(options.keep), 7, ring.FULL
    if options.quick:
        runs, cases = 3, ring.QUICK
    where = environment("numpy", "cryptography")
    mine = {case: _median(grid, ours, case, runs) for case in CASES}
    signed = {case: _median(grid, ours_malicious, case, runs) for case in MALICIOUS}
    masks, raw = mask_rates(runs)
    theirs = {case: _flower(grid, case, runs, quick=options.quick) for case in CASES}
    on_ring = {case: _median(grid, ring.run, case, 1) for case in cases}
    if options.record:
        ring.plot(on_ring, RESULTS / "secure_aggregation_ring.png")
        _save_recorded(theirs, where)
    rows = []
    for case in CASES:
        rows.append(mine[case].row(case, "ours"))
        rows += [signed[case].row(case, "ours, malicious")] if case in signed else []
        rows.append(theirs[case][0].row(case, f"Flower, {theirs[case][1]}"))
    rows += [figures.row(case, "ours, k-regular") for case, figures in on_ring.items()]
    gates = [*_relative_gates(mine, theirs), _mask_gate(masks, raw), *_absolute_gates(mine)]
    gates += [*expansion.gates(), *ring.gates(on_ring)]
    notes = where | {"Flower": theirs[WIDE][1]} | _mask_notes(masks, raw)
    notes |= _malicious_notes(mine, signed) | expansion.notes() | ring.notes(on_ring)
    finish(Report("secure aggregation", rows, gates, notes), options, "secure_aggregation")


# Parties ---------------------------------------------------------------------------------------


def _median(grid: Grid, run: Callable[[C], Figures], case: C, runs: int) -> Figures:
    """Return a cell: the medians over runs of one case."""
    settings = {"case": str(case), "runs": runs}
    name = f"{run.__module__.rpartition('.')[2]}.{run.__name__}"
    return grid.result(
        name, settings, lambda: Figures.median([run(case) for _ in range(runs)]), Figures
    )


def _flower(grid: Grid, case: Case, runs: int, *, quick: bool) -> tuple[Figures, str]:
    """Return Flower's figures and where they come from."""
    release = installed()
    if release is None or (quick and case != LONG):
        recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
        source = f"RECORDED {recorded['date']}, {recorded['flwr']}"
        return Figures(**recorded["cases"][str(case)]), source
    return _median(grid, flower, case, runs if case == LONG else 1), f"this run, {release}"


def _save_recorded(theirs: dict[Case, tuple[Figures, str]], where: dict[str, str]) -> None:
    release = installed()
    if release is None or any(source.startswith("RECORDED") for _, source in theirs.values()):
        raise SystemExit("--record needs flwr and does not go with --quick")
    cases = {str(case): dataclasses.asdict(figures) for case, (figures, _) in theirs.items()}
    command = "python -m benchmarks.masking.secure_aggregation --record"
    recorded = {"command": command, **where, "flwr": release, "cases": cases}
    RECORDED.write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")


def _malicious_notes(mine: dict[Case, Figures], signed: dict[Case, Figures]) -> dict[str, str]:
    """Return how many times the semi-honest cost the malicious model takes."""
    named = {"client": "client_cpu", "server": "server_cpu", "up": "upload", "down": "download"}
    return {
        f"malicious over semi-honest, {case}": ", ".join(
            f"{name} {getattr(figures, key) / getattr(mine[case], key):.2f}"
            for name, key in named.items()
        )
        for case, figures in signed.items()
    }


# Masks -----------------------------------------------------------------------------------------


def mask_rates(runs: int) -> tuple[dict[int, float], float]:
    """Return GB/s of keystream turned into an added mask, by field width, and of plain AES.

    Rejection, addition and reduction are included. The raw rate is that of AES-256-CTR over
    64 KiB of zeros into a buffer that is there.
    """
    progress("masks")
    rates: dict[int, list[float]] = {26: [], 5: [], 2: []}
    raw = []
    for _ in range(3 * runs):
        raw.append(MASKS * MASK_LENGTH / _seconds(_plain_aes) / 1e9)
        for bits, measured in rates.items():
            width = next(size for size in (1, 2, 4) if bits <= 8 * size)
            seconds = _seconds(lambda: _add_masks(bits))  # noqa: B023 - called at once
            measured.append(width * MASKS * MASK_LENGTH / seconds / 1e9)
    medians = {bits: statistics.median(measured) for bits, measured in rates.items()}
    return medians, statistics.median(raw)


def _add_masks(bits: int) -> None:
    total = np.zeros(MASK_LENGTH, dtype=np.uint32)
    prg.add_masks(total, [(bytes([i]) * 32, (-1) ** i) for i in range(MASKS)], PrimeField(bits))


def _plain_aes() -> None:
    encryptor = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(CHUNK), bytearray(CHUNK + 16)
    for _ in range(MASKS * MASK_LENGTH // CHUNK):
        encryptor.update_into(zeros, out)


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _mask_notes(masks: dict[int, float], raw: float) -> dict[str, str]:
    return {
        f"masks, b = {bits}": f"{rate:.2f} GB/s of keystream, {rate / raw:.3f} of plain AES"
        for bits, rate in masks.items()
    }


# Gates -----------------------------------------------------------------------------------------


def _relative_gates(
    mine: dict[Case, Figures], theirs: dict[Case, tuple[Figures, str]]
) -> list[Comparison]:
    faster = [
        (LONG, "client_cpu", 3),
        (LONG, "server_cpu", 2),
        (WIDE, "client_cpu", 30),
        (WIDE, "server_cpu", 300),
        (DROPS, "server_cpu", 200),
    ]
    gates = []
    for case, name, least in faster:
        figures, source = theirs[case]
        a, b = getattr(mine[case], name), getattr(figures, name)
        label = f"{case}: {name.replace('_cpu', '')}, times less CPU"
        gates.append(Comparison.at_least(label, b / a, least).of(a, b, source))
    for case, bound in ((LONG, 0.42), (WIDE, 0.46)):
        figures, source = theirs[case]
        ours_up, theirs_up = mine[case].upload, figures.upload
        label = f"{case}: upload, share of theirs"
        gate = Comparison.at_most(label, ours_up / theirs_up, bound)
        gates.append(gate.of(ours_up, theirs_up, source))
    return gates


def _mask_gate(masks: dict[int, float], raw: float) -> Comparison:
    gate = Comparison.at_least("masks, b = 26, share of AES-256-CTR", masks[26] / raw, 0.3)
    return gate.of(masks[26], raw, "plain AES, GB/s")


def _absolute_gates(mine: dict[Case, Figures]) -> list[Comparison]:
    bars = [(WIDE, "client_cpu", 40), (WIDE, "server_cpu", 150), (DROPS, "server_cpu", 300)]
    return [
        Comparison.at_most(f"{case}: {name.replace('_cpu', '')}, CPU ms", value, bound).of(value)
        for case, name, bound in bars
        for value in [getattr(mine[case], name)]
    ]


if __name__ == "__main__":
    main()
