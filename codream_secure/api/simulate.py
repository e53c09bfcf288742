"""`simulate`: a whole federation on this machine, as a function."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import cached_property, partial
from pathlib import Path

import torch

from codream_secure._version import __version__
from codream_secure.api.data import Data
from codream_secure.api.execution import Ended, carry_out, resumed, started
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.federation.rounds import NoProgress
from codream_secure.federation.run_models import norm_of
from codream_secure.federation.simulation import Simulation
from codream_secure.models.custom import Source, given_models
from codream_secure.models.evaluate import frozen_copy
from codream_secure.models.trained import FORMAT, Description, TrainedModel, Training
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.formats import Accuracy, Bytes, Row, Summary

# The partition of data that came divided; no scheme deals it.
_PER_CLIENT = "per-client"


class SimulationResult:
    """What a run has brought: its figures, its models, and where its files are.

    Attributes:
        summary: all figures, as the file `summary.json` has them (`runs.formats.Summary`).
        rounds: the accuracies and the costs of each finished round.
        folder: where files were written; None: nowhere.
    """

    def __init__(self, ended: Ended, folder: RunFolder | None, run: Simulation) -> None:
        self.summary: Summary = ended.summary
        self.rounds: tuple[Row, ...] = ended.rounds
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

    @cached_property
    def clients(self) -> tuple[TrainedModel, ...]:
        """Each client's model after the reported round, in the order of the clients."""
        return tuple(self._model(f"client-{c}", c) for c in self._run.client_models())

    @cached_property
    def student(self) -> TrainedModel | None:
        """The server's student, which learned from dreams alone; None without collaboration."""
        return None if self._run.server_model() is None else self._model("server", None)

    def _model(self, name: str, client: int | None) -> TrainedModel:
        run = self._run
        models = run.client_models()
        module = run.server_model() if client is None else models[client]
        if module is None:
            raise ValueError(f"the run has no model {name}")
        names = run.federation.model_names
        kept = frozen_copy(module).cpu().to(memory_format=torch.contiguous_format)
        kept.load_state_dict(run.weights()[name])
        return TrainedModel(kept, self._described(names[client or 0], client))

    def _described(self, architecture: str, client: int | None) -> Description:
        run, told = self._run, self.summary
        config, data = run.config, run.federation
        privacy = told.privacy
        row = next((row for row in self.rounds if row.round == told.reported_round), None)
        accuracy = None if row is None else row.server if client is None else row.clients[client]
        return Description(
            format=FORMAT,
            written_by=__version__,
            architecture=architecture,
            width=config.model.width,
            norm=norm_of(config),
            spec=data.spec,
            scaling=data.scaling,
            class_names=data.class_names,
            training=Training(
                method=told.method,
                dataset=told.dataset,
                clients=told.clients,
                round=told.reported_round,
                test_accuracy=accuracy,
                epsilon=None if privacy is None else privacy.epsilon,
                delta=None if privacy is None else privacy.delta,
                unit=None if privacy is None else privacy.unit,
            ),
        )


def simulate(
    data: Data | str | Path = "digits",
    *,
    models: str | Sequence[Source] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    checkpoint_every: int | None = None,
    on_round: Callable[[Row], None] | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
    **options: object,
) -> SimulationResult:
    """Run a whole federation on this machine: what `codream-secure simulate` does.

    Args:
        data: a dataset's name, the path of an .npz file or of a folder of images, or a `Data`.
        models: architectures, dealt to the clients in turn. Names, or functions that return an
            `nn.Module` (from an `InputSpec` if they have a parameter), or modules, from whose
            weights every client then starts.
        out: folder for all files of the run, new or empty; None: nothing is written.
        resume: folder of an interrupted run: go on with its settings. Give the same data.
        checkpoint_every: rounds between two checkpoints in `out`.
        on_round: called with the figures of every round when it ends.
        on_step: called with an activity, how many of its steps are done, and how many it has.
        options: the options of the command line, with underscores: ``clients=4, rounds=3,
            dp_eps=8``. `docs/options.md` lists them.

    Returns:
        The figures and the models.

    Raises:
        UserError: one line that says what is wrong with an argument and how to fix it.
        KeyboardInterrupt: after the files of the finished rounds were written.

    Guarantee:
        That of `Simulation`; `SimulationResult.privacy` reports what was really released.
    """
    given = {**options, **_data_options(data, options)}
    dataset = data.dataset if isinstance(data, Data) else None
    progress = NoProgress() if on_step is None else _Steps(on_step)
    begin = partial(Simulation, dataset=dataset, progress=progress)
    if resume is not None and out is not None:
        raise UserError("out cannot be used with resume: results go where the run began")
    named = [name.strip() for name in models.split(",")] if isinstance(models, str) else models
    with given_models(named or ()) as names:
        if names:
            given["models"] = ",".join(names)
        if resume is not None:
            run, folder = resumed(Path(resume), given, begin, checkpoint_every)
        else:
            config = resolve(Config.from_options(given))
            run, folder = started(
                config, begin, None if out is None else Path(out), checkpoint_every
            )
        with closing(folder) if folder else nullcontext():
            ended = carry_out(run, folder, [] if on_round is None else [on_round])
    if ended.interrupted:
        raise KeyboardInterrupt
    return SimulationResult(ended, folder, run)


class _Steps:
    """A `Progress` that tells a function how far each activity is."""

    def __init__(self, tell: Callable[[str, int, int], None]) -> None:
        self._tell = tell
        self._activity, self._done, self._total = "", 0, 0

    def start(self, activity: str, total: int) -> None:
        """Tell that an activity begins."""
        self._activity, self._done, self._total = activity, 0, total
        self._tell(activity, 0, total)

    def advance(self) -> None:
        """Tell that one more of its steps is done."""
        self._done += 1
        self._tell(self._activity, self._done, self._total)


def _data_options(data: Data | str | Path, options: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that follow from the data."""
    if "dataset" in options:
        raise UserError("dataset cannot be given as an option; give it as the first argument")
    if not isinstance(data, Data):
        return {"dataset": str(data)}
    found: dict[str, object] = {"dataset": data.dataset.name}
    if not data.dataset.client_rows:
        return found
    for name in ("partition", "samples_per_client"):
        if options.get(name) is not None:
            raise UserError(f"{name} cannot be used with Data.per_client, which deals nothing")
    clients = len(data.dataset.client_rows)
    if options.get("clients", clients) != clients:
        raise UserError(f"clients must be {clients} for this data, or left out")
    return {**found, "clients": clients, "partition": _PER_CLIENT}
