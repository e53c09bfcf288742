"""`codream-secure simulate`: a whole federation on this machine."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup

from codream_secure.cli.ending import end_like_interrupt, undisturbed
from codream_secure.cli.exit_codes import EXIT_INCOMPLETE, EXIT_INTERRUPTED
from codream_secure.cli.help import Command
from codream_secure.cli.options import (
    given_settings,
    number,
    run_options,
    sources,
    tell_classes,
)
from codream_secure.config import bounds
from codream_secure.config.early import check_early
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve, with_default_method
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.runs.commands import command_line
from codream_secure.runs.formats import SUMMARY
from codream_secure.runs.loggers import check_loggers, logger
from codream_secure.storage.folder_lock import check_empty

if TYPE_CHECKING:
    from codream_secure.api.execution import Begun
    from codream_secure.federation.rounds import Progress
    from codream_secure.federation.simulation import Simulation
    from codream_secure.runs.folder import RunFolder

_EXAMPLES = """\b
Examples:
  codream-secure simulate --clients 10 --dp-eps 8
  codream-secure simulate --partition dirichlet:0.5
  codream-secure simulate --models resnet8,lenet5,mlp --dropout 0.1
  codream-secure simulate --dataset my-images.npz --json
  codream-secure simulate --checkpoint-every 1 --out run
  codream-secure simulate --resume run
"""
_FILES = cloup.OptionGroup("Files and display")


@click.command(cls=Command, epilog=_EXAMPLES)
@sources
@run_options()
@click.option(
    "--out", type=Path, help="folder for the results, new or empty  [default: runs/<time>-<name>]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="print summary.json on stdout and nothing else"
)
@number(
    "--checkpoint-every",
    of=bounds.Positive,
    metavar="K",
    group=_FILES,
    told="write a checkpoint into the results' folder after every K-th round",
)
@click.option(
    "--resume",
    type=Path,
    help="folder of an interrupted run with a checkpoint: resume it with the same settings",
)
@cloup.option(
    "--tensorboard",
    is_flag=True,
    group=_FILES,
    help="also write TensorBoard's event files into the folder",
)
@cloup.option(
    "--wandb",
    is_flag=True,
    group=_FILES,
    help="also log to Weights & Biases (WANDB_MODE=offline: on this machine)",
)
@cloup.option(
    "--mlflow",
    is_flag=True,
    group=_FILES,
    help="also log to MLflow (MLFLOW_TRACKING_URI says where)",
)
@cloup.option("--quiet", is_flag=True, group=_FILES, help="no progress display and no table")
def simulate(
    preset: str | None,
    config_file: Path | None,
    out: Path | None,
    checkpoint_every: int | None,
    resume: Path | None,
    *,
    as_json: bool,
    tensorboard: bool,
    wandb: bool,
    mlflow: bool,
    quiet: bool,
    **options: object,
) -> None:
    """Run a whole federation on this machine."""
    given = given_settings(options, config_file, preset)
    flags = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}
    loggers = [name for name, wanted in flags.items() if wanted]
    check_loggers(loggers)
    if resume is not None and out is not None:
        raise UserError("--out cannot be used with --resume: results go where the run began")
    if resume is not None:
        begin = partial(_go_on, given, resume, checkpoint_every)
    else:
        # Before anything slow is imported, so that bad options are answered at once.
        config = resolve(Config.from_options(with_default_method(given)))
        check_early(config)
        if out is not None:
            check_empty(out)
        if not (quiet or as_json):
            tell_classes(config.data.dataset)
            _tell_method(given, config)
        begin = partial(_start, config, out, checkpoint_every)
    sys.exit(_simulate(begin, loggers, as_json=as_json, quiet=quiet))


def _tell_method(given: Mapping[str, object], config: Resolved) -> None:
    """Say so where an option that was given leads to another method than the default under DP."""
    unnamed = given.get("method") is None and config.private and not config.private_clients
    if unnamed and not config.has_noisy_model:
        click.echo(
            "--method codream is used: an option that was given belongs to it alone", err=True
        )


def _start(
    config: Resolved, out: Path | None, checkpoint_every: int | None, progress: "Progress"
) -> "Begun":
    """Begin a new run."""
    from codream_secure.api.execution import started  # noqa: PLC0415
    from codream_secure.federation.simulation import Simulation  # noqa: PLC0415
    from codream_secure.runs.folder import default_folder  # noqa: PLC0415

    make = partial(Simulation, progress=progress)
    return started(config, make, lambda: out or default_folder(config), checkpoint_every)


def _go_on(
    given: Mapping[str, object], run: Path, checkpoint_every: int | None, progress: "Progress"
) -> "Begun":
    """Go on with a run that was interrupted."""
    from codream_secure.api.execution import resumed  # noqa: PLC0415
    from codream_secure.federation.simulation import Simulation  # noqa: PLC0415

    return resumed(run, given, partial(Simulation, progress=progress), checkpoint_every)


def _simulate(
    begin: "Callable[[Progress], Begun]", loggers: Sequence[str], *, as_json: bool, quiet: bool
) -> int:
    # torch takes seconds to import: only now, so that --help and bad options answer at once.
    from codream_secure.api.execution import carry_out  # noqa: PLC0415
    from codream_secure.privacy.client_labels import prediction  # noqa: PLC0415
    from codream_secure.report.progress import LiveProgress, RoundLines  # noqa: PLC0415
    from codream_secure.report.table import summary_table  # noqa: PLC0415
    from codream_secure.report.text import stderr, stdout  # noqa: PLC0415
    from codream_secure.runs.formats import compact  # noqa: PLC0415

    end_like_interrupt()
    told = stderr(quiet=quiet or as_json)
    with LiveProgress(told) as progress:
        try:
            simulation, folder = begin(progress)
        except KeyboardInterrupt:
            return _interrupted_early()
        if found := prediction(simulation.config, simulation.federation.spec):
            told.print(found)
        lines = RoundLines(told, simulation.finished_rounds, simulation.last_round)
        lines.begin(len(simulation.federation.roster))
        with closing(folder) if folder else nullcontext():
            where = folder.path if folder else Path()
            made = [logger(name, where) for name in loggers]
            ended = carry_out(simulation, folder, [lines], made, writing=undisturbed)
    if ended.summary is None:
        return _interrupted_early()
    if ended.interrupted:
        click.echo(_interrupted(simulation, folder), err=True)
    if ended.unwritten:
        click.echo(f"error: {ended.unwritten}", err=True)
    if as_json:
        click.echo(compact(ended.summary))
    elif not quiet:
        console = stdout()
        console.print(summary_table(ended.summary))
        if folder and (folder.path / SUMMARY).is_file():
            console.print(f"written to {folder.path}", soft_wrap=True)
    if ended.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_INCOMPLETE if ended.unwritten or simulation.unlabelled_rounds else 0


def _interrupted_early() -> int:
    click.echo("interrupted before the first round was finished: there is no result", err=True)
    return EXIT_INTERRUPTED


def _interrupted(simulation: "Simulation", folder: "RunFolder | None") -> str:
    done = f"interrupted after round {simulation.finished_rounds} of {simulation.last_round}"
    if folder is None or not folder.can_resume:
        return f"{done}; there is no checkpoint to resume from (--checkpoint-every writes them)"
    return f"{done}; resume with: {command_line('simulate', {'resume': folder.path})}"
