"""The tables and figures of the CoDream paper (AAAI-25), made again at three scales.

    python -m benchmarks.paper.tables                      --scale tiny: structure only, minutes
    python -m benchmarks.paper.tables --quick              under 2 minutes; figures mean nothing
    python -m benchmarks.paper.tables --scale small        three seeds, hours on a CPU; not run yet
    python -m benchmarks.paper.tables --scale small --data my.npz --out kept --only table5
    python -m benchmarks.paper.tables --scale full         its own setting, for a GPU; not run yet
    python -m benchmarks.paper.tables --record --out kept  also rewrites the recorded page

Table 1 (four architectures), 2 (methods), 5 (ablation); Figures 3 (number of clients), 4 (dreams
a round), 5 (teachers). A row is one run, once a seed, and says the command that makes it. The
round that is reported is chosen by the clients' validation accuracy; the paper takes the best
test accuracy of all rounds. Sums are masked wherever there are three clients. Other methods
have the data, the seed and as many forward and backward passes of a client as CoDream; their step
sizes are not tuned. With --out results are kept, and what is there is not run again;
empty the folder when the code has changed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.paper.artefacts import ARTEFACTS, artefact
from benchmarks.paper.pages import Page, draw, markdown, show
from benchmarks.paper.rows import run_line
from benchmarks.paper.scales import SCALE_NOTES, SEEDS, Scale
from benchmarks.shared.gates import environment, own_command, progress
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import RESULTS, check_npz, parser

SCHEMA_VERSION = 1
LABELS: dict[Scale, str] = {
    "tiny": "structure only",
    "small": "small scale",
    "full": "the paper's setting",
}

GENERAL_NOTES = (
    (
        "Test accuracy in percent, ours above the paper's; ± is the standard deviation over seeds, "
        "in the paper over clients and seeds together."
    ),
    (
        "Our round is chosen by the clients' validation accuracy; the paper takes the best test "
        "accuracy of all rounds. CoDream is the mean over clients; Independent takes as many "
        "local steps and is read after the same round, and the server's student saw nothing but "
        "dreams."
    ),
    (
        "Other methods run in the clear, each for as many of a client's forward and backward "
        "passes as CoDream took, with the step sizes of `compare`, not tuned."
    ),
    "Sums are masked (semi-honest, threshold floor(2n/3) + 1) unless a row says otherwise.",
)


def main() -> None:
    """Run what was asked for and print it."""
    options = _options()
    scale: Scale = options.scale
    names = options.only or list(ARTEFACTS)
    chosen = [artefact(name, scale, data=options.data, quick=options.quick) for name in names]
    grid, console, pages = Grid(options.keep), Console(width=190), []
    notes = [SCALE_NOTES[scale], *GENERAL_NOTES]
    data = {str(row.options["dataset"]) for one in chosen for row in one.rows}
    facts = {"command": own_command(), "data": ", ".join(sorted(data)), **environment("torch")}
    if not options.json:
        console.print("\n".join(notes), highlight=False)
    for one in chosen:
        progress(one.title)
        lines = (run_line(row, one.methods, grid, SEEDS[scale]) for row in one.rows)
        page = Page(one, tuple(lines))
        pages.append(page)
        if not options.json:
            show(console, page, LABELS[scale])
    report = report_of(pages, scale, facts, notes)
    if options.json:
        print(json.dumps(report, indent=2))
    if options.record:
        _record(pages, scale, facts, report)


def _options() -> argparse.Namespace:
    arguments = parser(__doc__, "tiny, cut to the bone", only=ARTEFACTS)
    arguments.add_argument("--scale", choices=SEEDS, default="tiny")
    arguments.add_argument("--data", type=Path, help="an .npz file in place of the digits")
    options = arguments.parse_args()
    check_npz(arguments, options.data)
    if mistake := _mistake(options):
        arguments.error(mistake)
    return options


def _mistake(options: argparse.Namespace) -> str:
    """Return which options do not go together, or nothing."""
    if options.quick and options.scale != "tiny":
        return "--quick goes with --scale tiny"
    if options.data and options.scale == "full":
        return "--data cannot be used with --scale full"
    if options.record and (options.only or options.data):
        return "--record goes with neither --only nor --data"
    return ""


def report_of(
    pages: list[Page], scale: Scale, facts: dict[str, str], notes: list[str]
) -> dict[str, Any]:
    """Return everything in JSON's own types."""
    return {
        "schema_version": SCHEMA_VERSION,
        "title": f"the CoDream paper's tables and figures: {LABELS[scale]}",
        "scale": scale,
        "structure_only": scale == "tiny",
        "seeds": list(SEEDS[scale]),
        **facts,
        "notes": notes,
        "artefacts": {
            page.artefact.name: {
                "title": page.artefact.title,
                "seconds": page.seconds("seconds"),
                "cpu_seconds": page.seconds("cpu_seconds"),
                "notes": list(page.artefact.notes),
            }
            for page in pages
        },
        "rows": [line.as_json(page.artefact) for page in pages for line in page.lines],
        "gates": [],
    }


def _record(pages: list[Page], scale: Scale, facts: dict[str, str], report: dict[str, Any]) -> None:
    """Write the page, its pictures and the same as JSON."""
    stem = f"paper_tables_{scale}"
    pictures = {}
    for page in pages:
        name = f"{stem}_{page.artefact.name}.png"
        if draw(page, RESULTS / name, LABELS[scale]):
            pictures[page.artefact.name] = name
    text = markdown(
        pages, label=LABELS[scale], notes=report["notes"], facts=facts, pictures=pictures
    )
    (RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
