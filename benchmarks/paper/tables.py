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
have the data, the seed and as many forward and backward passes of a client as Co-Dream; their step
sizes are not tuned. With --out results are kept, and what is there is not run again;
empty the folder when the code has changed.
"""

import argparse
import json
import shlex
from pathlib import Path

from rich.console import Console

from benchmarks.paper.cells import ARTEFACTS, SCALE_NOTES, SEEDS, Artefact, Scale, artefact
from benchmarks.paper.pages import Line, Page, draw, markdown, show
from benchmarks.paper.runs import Runner
from benchmarks.shared.gates import environment, progress

RESULTS = Path(__file__).parents[1] / "results"
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
        "accuracy of all rounds. Co-Dream is the mean over clients; Independent takes as many "
        "local steps and is read after the same round, and the server's student saw nothing but "
        "dreams."
    ),
    (
        "Other methods run in the clear, each for as many of a client's forward and backward "
        "passes as Co-Dream took, with the step sizes of `compare`, not tuned."
    ),
    "Sums are masked (semi-honest, threshold floor(2n/3) + 1) unless a row says otherwise.",
)


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SEEDS, default="tiny")
    parser.add_argument("--only", help=f"comma-separated: {','.join(ARTEFACTS)}")
    parser.add_argument("--data", type=Path, help="an .npz file in place of the digits")
    parser.add_argument("--out", type=Path, help="folder that results are kept in")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="tiny, cut to the bone")
    parser.add_argument("--record", action="store_true", help="rewrite the recorded page")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(ARTEFACTS)
    if mistake := _mistake(options, names):
        parser.error(mistake)
    scale: Scale = options.scale
    chosen = [artefact(name, scale, data=options.data, quick=options.quick) for name in names]
    runner, console, pages = Runner(options.out), Console(width=190), []
    notes = [SCALE_NOTES[scale], *GENERAL_NOTES]
    data = {str(row.options["dataset"]) for one in chosen for row in one.rows}
    facts = {"command": _command(options), "data": ", ".join(sorted(data)), **environment("torch")}
    if not options.json:
        console.print("\n".join(notes), highlight=False)
    for one in chosen:
        progress(one.title)
        page = _page(one, runner, SEEDS[scale])
        pages.append(page)
        if not options.json:
            show(console, page, LABELS[scale])
    if options.json:
        print(json.dumps(report(pages, scale, facts, notes), indent=2))
    if options.record:
        _record(pages, scale, facts, notes)


def _mistake(options: argparse.Namespace, names: list[str]) -> str:
    """Return what is wrong with the options, or nothing."""
    unknown = [name for name in names if name not in ARTEFACTS]
    rules = {
        f"--only {','.join(unknown)}: use {', '.join(ARTEFACTS)}": bool(unknown),
        "--quick goes with --scale tiny": options.quick and options.scale != "tiny",
        "--data cannot be used with --scale full": options.data and options.scale == "full",
        f"--data {options.data}: no such .npz file": options.data
        and not (options.data.suffix == ".npz" and options.data.is_file()),
        "--record goes with neither --only, --quick nor --data": options.record
        and (options.only or options.quick or options.data),
    }
    return next((text for text, broken in rules.items() if broken), "")


def _command(options: argparse.Namespace) -> str:
    """Return the command that makes what was asked for; where results are kept plays no part."""
    words = ["python", "-m", "benchmarks.paper.tables", "--scale", options.scale]
    for name in ("only", "data"):
        value = getattr(options, name)
        words += [f"--{name}", str(value)] if value else []
    return shlex.join([*words, *(["--quick"] if options.quick else [])])


def _page(one: Artefact, runner: Runner, seeds: tuple[int, ...]) -> Page:
    lines = tuple(
        Line(
            row,
            tuple(runner.run({**row.options, "seed": seed}, one.methods) for seed in seeds),
            one.methods,
        )
        for row in one.rows
    )
    return Page(one, lines)


def report(
    pages: list[Page], scale: Scale, facts: dict[str, str], notes: list[str]
) -> dict[str, object]:
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
                "seconds": page.seconds,
                "cpu_seconds": page.cpu_seconds,
                "notes": list(page.artefact.notes),
            }
            for page in pages
        },
        "rows": [line.as_json(page.artefact) for page in pages for line in page.lines],
        "gates": [],
    }


def _record(pages: list[Page], scale: Scale, facts: dict[str, str], notes: list[str]) -> None:
    """Write the page, its pictures and the same as JSON."""
    stem = f"paper_tables_{scale}"
    pictures = {}
    for page in pages:
        name = f"{stem}_{page.artefact.name}.png"
        if draw(page, RESULTS / name, LABELS[scale]):
            pictures[page.artefact.name] = name
    text = markdown(pages, label=LABELS[scale], notes=notes, facts=facts, pictures=pictures)
    (RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
    data = json.dumps(report(pages, scale, facts, notes), indent=1)
    (RESULTS / f"{stem}.json").write_text(data + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
