"""One run from its first round to its last file, for the command line and for Python alike."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from codream_secure.config.resolved import Resolved
from codream_secure.config.settings import Config
from codream_secure.errors import WriteError
from codream_secure.federation.simulation import Simulation
from codream_secure.report import drawing  # noqa: F401 - a bad matplotlibrc is told at once
from codream_secure.report.page import write_report
from codream_secure.report.pictures import draw_pictures
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.formats import Row, Summary
from codream_secure.runs.loggers import Following, Logger
from codream_secure.runs.summary import row_of, summarise

Begin = Callable[[Config], Simulation]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        summary: of what was done; None: no round was finished, and nothing was written.
        rounds: all finished rounds, those before a restart included.
        interrupted: whether Ctrl-C ended it.
        unwritten: the first thing that could not be written; None: all was.
    """

    summary: Summary | None
    rounds: tuple[Row, ...]
    interrupted: bool
    unwritten: WriteError | None


Begun = tuple[Simulation, RunFolder | None]


def started(
    config: Resolved, begin: Begin, out: Callable[[], Path] | None, checkpoint_every: int | None
) -> Begun:
    """Begin a new run.

    Args:
        config: its settings.
        begin: makes the simulation.
        out: names the folder, new or empty, once the settings have been found to work; None:
            nothing is written.
        checkpoint_every: rounds between two checkpoints; None: there are none.

    Raises:
        UserError: the settings cannot be run, or the folder cannot be used.

    Warns:
        UserWarning: something about the data is suspicious.
    """
    simulation = begin(config)
    for told in simulation.doubts:
        warnings.warn(told, stacklevel=3)
    if out is None:
        return simulation, None
    folder = RunFolder.create(out(), checkpoint_every=checkpoint_every)
    try:
        folder.start(simulation)
    except BaseException:
        folder.close()
        raise
    return simulation, folder


def resumed(
    run: Path, given: Mapping[str, object], begin: Begin, checkpoint_every: int | None
) -> Begun:
    """Go on with a run that was interrupted.

    Args:
        run: its folder.
        given: settings that are given again; they may not differ.
        begin: makes the simulation.
        checkpoint_every: another interval between checkpoints; None keeps it.

    Raises:
        UserError: the folder, its checkpoint or the settings do not fit.
    """
    folder = RunFolder.reopen(run, checkpoint_every=checkpoint_every)
    try:
        simulation = begin(folder.configuration(given))
        folder.restore(simulation)
    except BaseException:
        folder.close()
        raise
    return simulation, folder


def carry_out(
    simulation: Simulation,
    folder: RunFolder | None,
    on_round: Sequence[Callable[[Row], None]] = (),
    loggers: Sequence[Logger] = (),
    *,
    writing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Ended:
    """Run the rounds that are left, and write all files of whatever was reached.

    Args:
        simulation: new or restored.
        folder: where files are written; None: nowhere.
        on_round: called with the figures of every round when it ends.
        loggers: follow the run too; one that fails is left out from then on.
        writing: makes the context in which the last files are written.

    Raises:
        UserError: a logger cannot begin.
        WriteError: nothing can be written, and no round was finished.
    """
    rows = [] if folder is None else folder.rows()
    hooks = simulation.after_round
    hooks.append(lambda found: rows.append(row_of(simulation, found)))
    if folder is not None:
        hooks.append(lambda _: folder.record(rows[-1]))
    following = Following(list(loggers))
    hooks += [partial(_tell, hook, rows) for hook in (following.log, *on_round)]
    if folder is not None:
        hooks.append(lambda _: folder.checkpoint(simulation))
    following.begin(_name(simulation, folder), simulation.config.options())
    try:
        end = _run_rounds(simulation)
    finally:
        following.end()
    interrupted = isinstance(end, KeyboardInterrupt)
    unwritten = end if isinstance(end, WriteError) else None
    fault = None if interrupted else end
    if not simulation.finished_rounds:
        if fault is not None:
            raise fault
        return Ended(None, (), interrupted, following.failed)
    with writing():
        summary = summarise(simulation)
        if folder is not None:
            unwritten = unwritten or _finish(simulation, folder, summary)
            rows = folder.rows() or rows
    if fault is not None and not isinstance(fault, WriteError):
        raise fault
    return Ended(summary, tuple(rows), interrupted, unwritten or following.failed)


def _run_rounds(simulation: Simulation) -> BaseException | None:
    """Run the rounds that are left; return what ended them before their time."""
    try:
        for _ in simulation.rounds():
            # Pictures and checkpoints show the last ones. All of them would fill the memory.
            simulation.dreams = simulation.dreams[-1:]
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - the caller raises it again
        return error
    return None


def _finish(simulation: Simulation, folder: RunFolder, summary: Summary) -> WriteError | None:
    """Write all that a run leaves, in the order that makes every beginning of it valid.

    Returns:
        The error of the first file that could not be written; the others are.
    """
    unwritten = None
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
            unwritten = unwritten or error
    return unwritten


def _name(simulation: Simulation, folder: RunFolder | None) -> str:
    """Return a name for the run, for whoever lists many."""
    if folder is not None:
        return folder.path.name
    return f"{simulation.config.dream.method}-{simulation.config.data.dataset}"


def _tell(hook: Callable[[Row], None], rows: Sequence[Row], _: object) -> None:
    hook(rows[-1])
