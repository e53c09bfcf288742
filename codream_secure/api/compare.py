"""`compare_methods`: several methods over the same data and seeds, as a function."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from codream_secure.api.data import Data, options_of
from codream_secure.api.steps import OnStep, progress_of
from codream_secure.baselines.base import BaselineSettings
from codream_secure.compare.comparison import Comparison
from codream_secure.compare.plan import Plan, as_match
from codream_secure.config.presets import preset as settings_of
from codream_secure.data.datasets import Dataset
from codream_secure.errors import WriteError
from codream_secure.federation.rounds import Progress
from codream_secure.models.custom import Source, given_models, listed
from codream_secure.report import drawing  # noqa: F401 - a bad matplotlibrc is told at once
from codream_secure.report.page import write_report
from codream_secure.runs.comparison_format import ComparisonResult, Match


@dataclass(frozen=True, slots=True)
class Compared:
    """How a comparison ended.

    Attributes:
        result: of the cells that are finished.
        interrupted: whether Ctrl-C ended it.
        unwritten: the first thing that could not be written; None: all was.
    """

    result: ComparisonResult
    interrupted: bool
    unwritten: WriteError | None

    @property
    def any_done(self) -> bool:
        """Whether there is a figure of any method."""
        return any(row.mean for row in self.result.rows)


def compare_methods(
    data: Data | str | Path | None = None,
    methods: str | Sequence[str] = ("codream", "fedavg", "independent"),
    *,
    seeds: Sequence[int] = (0,),
    match: Match = "iterations",
    trials: int = 3,
    target: float | None = None,
    preset: str | None = None,
    models: str | Source | Sequence[Source] | None = None,
    out: str | Path | None = None,
    on_step: OnStep | None = None,
    fed_epochs: int = 5,
    fed_lr: float = 0.03,
    prox: float = 0.01,
    moon_weight: float = 1.0,
    messenger: str = "lenet5",
    **options: object,
) -> ComparisonResult:
    """Run several methods on the same data, at equal cost: what `codream-secure compare` does.

    Args:
        data: as in `simulate`.
        methods: their names, as `codream-secure compare --help` lists them; a text has commas.
        seeds: one run of each method is made with each.
        match: the cost that all methods may spend equally: "rounds", "iterations", "seconds" or
            "bytes".
        trials: step sizes tried for every method on validation; 1: none.
        target: accuracy, 0 to 1, for `bytes_to_target`.
        preset: settings that go together; `options` win.
        models: as in `simulate`.
        out: folder for the results; finished cells in it are not run again. None: nothing is kept.
        on_step: called with an activity, how many of its steps are done, and how many it has.
        fed_epochs: local epochs of the baselines in each round.
        fed_lr: step size of the baselines' SGD; tuning starts from it.
        prox: FedProx's mu.
        moon_weight: MOON's mu.
        messenger: architecture of the common model, for methods that train one.
        options: settings of `simulate` with underscores.

    Returns:
        A row for each method: figures of every seed and their means, or why there are none.

    Raises:
        UserError: one line that says what is wrong with an argument and how to fix it.
        KeyboardInterrupt: after what was finished was written.

    Warns:
        UserWarning: a file in `out` could not be written.
    """
    shipped = {} if preset is None else settings_of(preset)
    given = {**shipped, **options, **options_of(data, options)}
    settings = BaselineSettings(
        local_epochs=fed_epochs,
        learning_rate=fed_lr,
        prox=prox,
        moon_weight=moon_weight,
        messenger=messenger,
    )
    dataset = data.dataset if isinstance(data, Data) else None
    with given_models(listed(models)) as names, _folder(out) as folder:
        if names:
            given["models"] = ",".join(names)
        plan = Plan(
            methods=_names(methods),
            seeds=tuple(seeds),
            options={name: value for name, value in given.items() if value is not None},
            settings=settings,
            match=as_match(match),
            trials=trials,
            target=target,
        )
        done = carry_out(plan, folder, dataset, progress_of(on_step))
    if done.interrupted:
        raise KeyboardInterrupt
    if done.unwritten is not None:
        warnings.warn(str(done.unwritten), stacklevel=2)
    return done.result


def carry_out(
    plan: Plan,
    folder: Path,
    dataset: Dataset | None,
    progress: Progress,
    writing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Compared:
    """Run all cells that are not finished, and write whatever was reached.

    Args:
        plan: what to run.
        folder: new, empty, or one in which the same plan was begun.
        dataset: None: the one that the settings name.
        progress: follows what is being run.
        writing: makes the context in which the last files are written.

    Raises:
        UserError: the folder holds something else.
    """
    interrupted, unwritten = False, None
    with closing(Comparison(plan, folder, dataset=dataset, progress=progress)) as comparison:
        try:
            comparison.run()
        except KeyboardInterrupt:
            interrupted = True
        except WriteError as error:
            unwritten = error
        with writing():
            done = Compared(comparison.found(), interrupted, unwritten)
            try:
                comparison.result()
                if done.any_done:
                    write_report(folder)
            except WriteError as error:
                unwritten = unwritten or error
    return Compared(done.result, interrupted, unwritten)


def _names(words: str | Sequence[str]) -> tuple[str, ...]:
    listed = words.split(",") if isinstance(words, str) else words
    return tuple(name.strip() for name in listed)


def _folder(out: str | Path | None) -> AbstractContextManager[Path]:
    """Return the folder of the cells, for as long as they are run."""
    return _Passing() if out is None else nullcontext(Path(out))


class _Passing:
    """A folder that is removed in the end."""

    def __enter__(self) -> Path:
        self._made = TemporaryDirectory(prefix="codream-compare-")
        return Path(self._made.name)

    def __exit__(self, *_: object) -> None:
        self._made.cleanup()
