"""What every script has: its options, and its parts one after the other."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from benchmarks.shared.gates import Report, progress
from benchmarks.shared.grid import Grid

RESULTS = Path(__file__).parents[1] / "results"


def parser(
    doc: str,
    quick: str,
    *,
    only: Iterable[str] = (),
    seeds: int | None = None,
    record: bool = True,
    data_folder: bool = False,
) -> argparse.ArgumentParser:
    """Return a parser of the options that scripts share; a script may add others.

    Args:
        doc: the script's docstring, whose first line is shown.
        quick: what ``--quick`` leaves out.
        only: the parts that ``--only`` may name, if there are parts.
        seeds: default of ``--seeds``; None: the script has no such option.
        record: whether the script writes to results/.
        data_folder: whether it reads .npz files of a folder.
    """
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    # Figures of a quick run mean nothing, so they are never recorded.
    either = found.add_mutually_exclusive_group()
    either.add_argument("--quick", action="store_true", help=quick)
    found.add_argument("--json", action="store_true", help="print JSON")
    found.add_argument(
        "--keep", "--out", type=Path, help="folder to keep finished cells in, and to go on in"
    )
    if only:
        found.add_argument("--only", nargs="+", choices=list(only), help="some parts")
    if seeds is not None:
        found.add_argument("--seeds", type=int, default=seeds, help="how many, from 0")
    if record:
        either.add_argument("--record", action="store_true", help="also write results/")
    if data_folder:
        found.add_argument("--data-folder", type=Path, default=Path("data"), help=".npz files")
    return found


def check_npz(arguments: argparse.ArgumentParser, path: Path | None) -> None:
    """End the script if the file that ``--data`` names is not there."""
    if path is not None and not (path.suffix == ".npz" and path.is_file()):
        arguments.error(f"--data {path}: no such .npz file")


def finish(report: Report, options: argparse.Namespace, record: str = "") -> NoReturn:
    """Show a report, with ``--record`` also write it to results/; exit with 1 if a gate fails."""
    save = RESULTS / record if record and options.record else None
    raise SystemExit(int(not report.show(as_json=options.json, save=save)))


def run_parts(
    names: Iterable[str],
    run: Callable[[str, Grid], Report | None],
    options: argparse.Namespace,
    record: str = "",
) -> NoReturn:
    """Run one part after the other and show each; exit with 1 if a gate fails.

    Args:
        names: of the parts.
        run: runs a part, in a grid of its own; None: its data is not there.
        options: of the script.
        record: where results/ has a part, before its name.
    """
    results = []
    for name in names:
        report = run(name, Grid(options.keep / name if options.keep else None))
        if report is None:
            progress(f"{name}: no data in {options.data_folder}, left out")
            continue
        save = RESULTS / f"{record}{name}" if record and options.record else None
        results.append(report.show(as_json=options.json, save=save))
    if not results:
        raise SystemExit("nothing was run: name the folder of the .npz files with --data-folder")
    raise SystemExit(int(not all(results)))
