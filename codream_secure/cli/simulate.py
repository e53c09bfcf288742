"""`codream-secure simulate`: a whole federation on this machine."""

import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from codream_secure.cli.ending import end_like_interrupt, undisturbed
from codream_secure.cli.exit_codes import EXIT_INCOMPLETE, EXIT_INTERRUPTED
from codream_secure.cli.options import given_settings, run_options, tell_classes
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import UserError, WriteError
from codream_secure.runs.commands import command_line
from codream_secure.runs.formats import SUMMARY

if TYPE_CHECKING:
    from codream_secure.federation.rounds import Progress
    from codream_secure.federation.simulation import Simulation
    from codream_secure.runs.folder import RunFolder
    from codream_secure.runs.formats import Summary

_EXAMPLES = """\b
Examples:
  codream-secure simulate --clients 10 --dp-eps 8
  codream-secure simulate --partition dirichlet:0.5
  codream-secure simulate --models resnet8,lenet5,mlp --dropout 0.1
  codream-secure simulate --dataset my-images.npz --json
  codream-secure simulate --checkpoint-every 1 --out run
  codream-secure simulate --resume run
"""


@click.command(epilog=_EXAMPLES)
@run_options()
@click.option(
    "--config",
    "config_file",
    type=Path,
    help="TOML file with options as keys, underscores for dashes; the command line wins",
)
@click.option(
    "--out", type=Path, help="folder for the results, new or empty  [default: runs/<time>-<name>]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="print summary.json on stdout and nothing else"
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="K",
    help="write a checkpoint into the results' folder after every K-th round",
)
@click.option(
    "--resume",
    type=Path,
    help="folder of an interrupted run with a checkpoint: resume it with the same settings",
)
@click.option(
    "--tensorboard", is_flag=True, help="also write TensorBoard's event files into the folder"
)
@click.option("--quiet", is_flag=True, help="no progress display and no table")
def simulate(
    config_file: Path | None,
    out: Path | None,
    checkpoint_every: int | None,
    resume: Path | None,
    *,
    as_json: bool,
    tensorboard: bool,
    quiet: bool,
    **options: object,
) -> None:
    """Run a whole federation on this machine."""
    given = given_settings(options, config_file)
    if resume is not None:
        if out is not None:
            raise UserError("--out cannot be used with --resume: results go where the run began")
        begin = partial(_go_on, given, resume, checkpoint_every)
    else:
        config = resolve(Config.from_options(given))
        if not (quiet or as_json):
            tell_classes(config.data.dataset)
        begin = partial(_start, config, out, checkpoint_every)
    sys.exit(_simulate(begin, as_json=as_json, tensorboard=tensorboard, quiet=quiet))


def _start(
    config: Resolved, out: Path | None, checkpoint_every: int | None, progress: "Progress"
) -> "tuple[Simulation, RunFolder]":
    """Begin a new run."""
    from codream_secure.federation.simulation import Simulation  # noqa: PLC0415
    from codream_secure.runs.folder import RunFolder, default_folder  # noqa: PLC0415

    simulation = Simulation(config, progress=progress)
    folder = RunFolder.create(out or default_folder(config), checkpoint_every=checkpoint_every)
    try:
        folder.start(simulation)
    except BaseException:
        folder.close()
        raise
    return simulation, folder


def _go_on(
    given: Mapping[str, object], run: Path, checkpoint_every: int | None, progress: "Progress"
) -> "tuple[Simulation, RunFolder]":
    """Go on with a run that was interrupted."""
    from codream_secure.federation.simulation import Simulation  # noqa: PLC0415
    from codream_secure.runs.folder import RunFolder  # noqa: PLC0415

    folder = RunFolder.reopen(run, checkpoint_every=checkpoint_every)
    try:
        simulation = Simulation(folder.configuration(given), progress=progress)
        folder.restore(simulation)
    except BaseException:
        folder.close()
        raise
    return simulation, folder


def _simulate(
    begin: "Callable[[Progress], tuple[Simulation, RunFolder]]",
    *,
    as_json: bool,
    tensorboard: bool,
    quiet: bool,
) -> int:
    # torch takes seconds to import: only now, so that --help and bad options answer at once.
    from codream_secure.privacy.client_labels import prediction  # noqa: PLC0415
    from codream_secure.report import drawing  # noqa: F401, PLC0415 - fails now, not after the work
    from codream_secure.report.progress import LiveProgress  # noqa: PLC0415
    from codream_secure.report.table import summary_table  # noqa: PLC0415
    from codream_secure.report.text import stderr, stdout  # noqa: PLC0415
    from codream_secure.runs.formats import compact  # noqa: PLC0415
    from codream_secure.runs.summary import summarise  # noqa: PLC0415

    end_like_interrupt()
    told = stderr(quiet=quiet or as_json)
    with LiveProgress(told) as progress:
        try:
            simulation, folder = begin(progress)
        except KeyboardInterrupt:
            return _interrupted_early()
        if found := prediction(simulation.config, simulation.federation.spec):
            told.print(found)
        with closing(folder):
            code, why = _run(simulation, folder, tensorboard=tensorboard)
            if not simulation.finished_rounds:
                return _interrupted_early()
            with undisturbed():
                summary = summarise(simulation)
                unwritten = _finish(simulation, folder, summary)
    if why:
        click.echo(why, err=True)
    if unwritten and not why.startswith("error"):
        click.echo(unwritten, err=True)
    if as_json:
        click.echo(compact(summary))
    elif not quiet:
        console = stdout()
        console.print(summary_table(summary))
        if (folder.path / SUMMARY).is_file():
            console.print(f"written to {folder.path}", soft_wrap=True)
    return EXIT_INCOMPLETE if unwritten and not code else code


def _interrupted_early() -> int:
    click.echo("interrupted before the first round was finished: there is no result", err=True)
    return EXIT_INTERRUPTED


def _run(simulation: "Simulation", folder: "RunFolder", *, tensorboard: bool) -> tuple[int, str]:
    """Run the rounds; return the exit code, and a line about what ended them early.

    Raises:
        WriteError: nothing can be written, and no round was finished.
    """
    simulation.after_round += [
        partial(folder.record, simulation),
        lambda _: folder.checkpoint(simulation),
    ]
    try:
        if tensorboard:
            folder.open_events()
        for _ in simulation.rounds():
            pass
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED, _interrupted(simulation, folder)
    except WriteError as error:
        if not simulation.finished_rounds:
            raise
        return EXIT_INCOMPLETE, f"error: {error}"
    return EXIT_INCOMPLETE if simulation.unlabelled_rounds else 0, ""


def _interrupted(simulation: "Simulation", folder: "RunFolder") -> str:
    done = f"interrupted after round {simulation.finished_rounds} of {simulation.last_round}"
    if not folder.can_resume:
        return f"{done}; there is no checkpoint to resume from (--checkpoint-every writes them)"
    return f"{done}; resume with: {command_line('simulate', {'resume': folder.path})}"


def _finish(simulation: "Simulation", folder: "RunFolder", summary: "Summary") -> str:
    """Write all that a run leaves, in the order that makes every beginning of it valid.

    Returns:
        A line about the first file that could not be written; the others are.
    """
    from codream_secure.report.page import write_report  # noqa: PLC0415
    from codream_secure.report.pictures import draw_pictures  # noqa: PLC0415

    unwritten = ""
    for write in (
        partial(folder.complete, simulation),
        partial(folder.write_models, simulation),
        partial(draw_pictures, simulation, folder.path),
        partial(folder.write_summary, summary),
        partial(write_report, folder.path),
    ):
        try:
            write()
        except WriteError as error:
            unwritten = unwritten or f"error: {error}"
    return unwritten
