"""`simulate`: a whole federation on this machine, as a function."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import cached_property, partial
from pathlib import Path

from codream_secure.api.data import Data, options_of
from codream_secure.api.execution import carry_out, resumed, started
from codream_secure.api.steps import OnStep, progress_of
from codream_secure.config.bounds import MANY, Positive, checked
from codream_secure.config.presets import preset as settings_of
from codream_secure.config.rules import resolve, with_default_method
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.models.custom import Source, given_models, listed
from codream_secure.models.trained import TrainedModel
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.formats import Accuracy, Bytes, Row, Summary
from codream_secure.runs.loggers import Logger, check_loggers, logger
from codream_secure.runs.models import SERVER, trained_models

_POSITIVE = f"from 1 to {MANY}"


class SimulationResult:
    """What a run has brought: its figures, its models, and where its files are.

    Attributes:
        summary: all figures, as the file `summary.json` has them (`runs.formats.Summary`).
        rounds: the accuracies and the costs of each finished round.
        folder: where files were written; None: nowhere.
    """

    def __init__(
        self,
        summary: Summary,
        rounds: tuple[Row, ...],
        folder: RunFolder | None,
        run: Simulation,
    ) -> None:
        self.summary = summary
        self.rounds = rounds
        self.folder = None if folder is None else folder.path
        self._run = run

    def __repr__(self) -> str:
        told = self.summary
        return f"SimulationResult({told.method}, {told.clients} clients, {len(self.rounds)} rounds)"

    @property
    def accuracy(self) -> Accuracy:
        """Test accuracies of the reported round, 0 to 1, as `clients_mean`. No epsilon covers them.

        The round is chosen on the clients' validation parts, never on the test part.
        """
        return self.summary.accuracy

    @property
    def privacy(self) -> Guarantee | None:
        """The guarantee for what was really released; None without differential privacy."""
        return self.summary.privacy

    @property
    def bytes(self) -> Bytes:
        """Bytes of encoded messages, as `per_client_up`."""
        return self.summary.bytes

    @property
    def clients(self) -> tuple[TrainedModel, ...]:
        """Each client's model after the reported round, in the order of the clients."""
        return tuple(model for name, model in self._models.items() if name != SERVER)

    @property
    def student(self) -> TrainedModel | None:
        """The server's student, which learned from dreams alone; None without collaboration."""
        return self._models.get(SERVER)

    @cached_property
    def _models(self) -> dict[str, TrainedModel]:
        return trained_models(self._run)


def simulate(
    data: Data | str | Path | None = None,
    *,
    preset: str | None = None,
    models: str | Source | Sequence[Source] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    checkpoint_every: int | None = None,
    on_round: Callable[[Row], None] | None = None,
    on_step: OnStep | None = None,
    loggers: Sequence[str | Logger] = (),
    **options: object,
) -> SimulationResult:
    """Run a whole federation on this machine: what `codream-secure simulate` does.

    Args:
        data: a dataset's name, the path of an .npz file or of a folder of images, or a `Data`;
            None: the preset's, or the digits.
        preset: settings that go together, as `codream-secure presets` shows them; `options` win.
        models: architectures, dealt to the clients in turn. Names, or functions that return an
            `nn.Module` (from an `InputSpec` if they have a parameter), or modules, from whose
            weights every client then starts.
        out: folder for all files of the run, new or empty; None: nothing is written.
        resume: folder of an interrupted run: go on with its settings. Give the same data.
        checkpoint_every: rounds between two checkpoints in `out`.
        on_round: called with the figures of every round when it ends.
        on_step: called with an activity, how many of its steps are done, and how many it has.
        loggers: "tensorboard" (needs `out`), "wandb", "mlflow", or objects like `Logger`: they see
            the figures of every round. One that fails is left out, with a warning.
        options: the options of the command line, with underscores: ``clients=4, rounds=3,
            dp_eps=8``. `docs/options.md` lists them.

    Returns:
        The figures and the models.

    Raises:
        UserError: one line that says what is wrong with an argument and how to fix it.
        KeyboardInterrupt: after the files of the finished rounds were written.

    Warns:
        UserWarning: a file in `out` could not be written after a round was finished.

    Guarantee:
        That of `Simulation`; `SimulationResult.privacy` reports what was really released.
    """
    shipped = {} if preset is None else settings_of(preset)
    check_loggers([one for one in loggers if isinstance(one, str)])
    if out is None and resume is None and "tensorboard" in loggers:
        raise UserError("tensorboard writes into the run's folder; name one with out")
    given = {**shipped, **options, **options_of(data, options)}
    if checkpoint_every is not None:
        checkpoint_every = _checkpoints(checkpoint_every)
    dataset = data.dataset if isinstance(data, Data) else None
    begin = partial(Simulation, dataset=dataset, progress=progress_of(on_step))
    if resume is not None and out is not None:
        raise UserError("out cannot be used with resume: results go where the run began")
    with given_models(listed(models)) as names:
        if names:
            given["models"] = ",".join(names)
        if resume is not None:
            run, folder = resumed(Path(resume), given, begin, checkpoint_every)
        else:
            config = resolve(Config.from_options(with_default_method(given)))
            where = None if out is None else partial(Path, out)
            run, folder = started(config, begin, where, checkpoint_every)
        with closing(folder) if folder else nullcontext():
            place = folder.path if folder else Path()
            made = [logger(one, place) if isinstance(one, str) else one for one in loggers]
            ended = carry_out(run, folder, [] if on_round is None else [on_round], made)
    if ended.interrupted or ended.summary is None:
        raise KeyboardInterrupt
    if ended.unwritten is not None:
        warnings.warn(str(ended.unwritten), stacklevel=2)
    return SimulationResult(ended.summary, ended.rounds, folder, run)


def _checkpoints(every: object) -> int:
    try:
        return int(checked(every, int, Positive, _POSITIVE))
    except ValueError as error:
        raise UserError(f"checkpoint_every must be {error}, not {every!r}") from None
