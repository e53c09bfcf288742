"""One run from its first round to its last file, for the command line and for Python alike."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from codream_secure.config.resolved import Resolved
from codream_secure.config.settings import Config
from codream_secure.federation.simulation import Simulation
from codream_secure.report.page import write_report
from codream_secure.report.pictures import draw_pictures
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.formats import Row, Summary
from codream_secure.runs.summary import row_of, summarise

Begin = Callable[[Config], Simulation]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        summary: of what was done.
        rounds: all finished rounds, those before a restart included.
        interrupted: whether Ctrl-C ended it.
    """

    summary: Summary
    rounds: tuple[Row, ...]
    interrupted: bool


Begun = tuple[Simulation, RunFolder | None]


def started(
    config: Resolved, begin: Begin, out: Path | None, checkpoint_every: int | None
) -> Begun:
    """Begin a new run.

    Args:
        config: its settings.
        begin: makes the simulation.
        out: the folder, new or empty; None: nothing is written.
        checkpoint_every: rounds between two checkpoints; None: there are none.

    Raises:
        UserError: the settings cannot be run, or the folder cannot be used.
    """
    simulation = begin(config)
    if out is None:
        return simulation, None
    folder = RunFolder.create(out, checkpoint_every=checkpoint_every)
    folder.start(simulation)
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
    simulation: Simulation, folder: RunFolder | None, on_round: Sequence[Callable[[Row], None]] = ()
) -> Ended:
    """Run the rounds that are left, and write all files of whatever was reached."""
    rows = [] if folder is None else folder.rows()

    if folder is not None:
        simulation.after_round.append(partial(folder.record, simulation))
    simulation.after_round.append(lambda found: rows.append(row_of(simulation, found)))
    for hook in on_round:
        simulation.after_round.append(partial(_tell, hook, rows))
    if folder is not None:
        simulation.after_round.append(lambda _: folder.checkpoint(simulation))
    interrupted = False
    try:
        for _ in simulation.rounds():
            pass
    except KeyboardInterrupt:
        interrupted = True
    summary = summarise(simulation)
    if folder is not None:
        with closing(folder):
            folder.complete(simulation)
            folder.write_models(simulation)
            draw_pictures(simulation, folder.path)
            folder.write_summary(summary)
            write_report(folder.path)
    return Ended(summary, tuple(rows), interrupted)


def _tell(hook: Callable[[Row], None], rows: Sequence[Row], _: object) -> None:
    hook(rows[-1])
