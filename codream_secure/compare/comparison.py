"""Runs a comparison cell by cell, in a folder; a repeated call runs only unfinished cells.

Read `Comparison.run` first. The first method that dreams (else the first method) is the
reference: it runs its own number of rounds, and what that costs is what every other method may
spend. A method goes on round by round as long as the next round fits.
"""

import dataclasses
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from codream_secure.baselines.run import BaselineRun
from codream_secure.compare.plan import MAX_ROUNDS, Budget, Plan, cost_of
from codream_secure.compare.results import figures, means
from codream_secure.config.methods import OWN_OPTIMIZER, parse_method
from codream_secure.config.resolved import Resolved
from codream_secure.data.datasets import Dataset
from codream_secure.errors import UserError, WriteError
from codream_secure.federation.rounds import NoProgress, Progress
from codream_secure.federation.run import Run
from codream_secure.federation.simulation import Simulation
from codream_secure.report.pictures import draw_pictures
from codream_secure.runs.comparison_folder import FAILED
from codream_secure.runs.comparison_format import Cell, ComparisonResult, Match, MethodRow, Trial
from codream_secure.runs.files import text_of
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.formats import (
    COMPARISON,
    FORMAT,
    SUMMARY,
    FormatError,
    Summary,
    parse,
    pretty,
)
from codream_secure.runs.reading import read_rows
from codream_secure.runs.summary import row_of, summarise
from codream_secure.storage.files import make_folder, remove, replace
from codream_secure.storage.folder_lock import claim, is_empty

# Factors on the step size. The first keeps the default, so that one trial tunes nothing.
FACTORS = (1.0, 1 / 3, 3.0, 0.1, 10.0)
_TRIAL_PART = 4  # a trial has this part of the rounds


class Comparison:
    """A comparison, and the folder that holds it.

    Args:
        plan: what to run.
        folder: new, empty, or one in which the same plan was begun. Finished cells are kept.
        dataset: used instead of the dataset that the settings name.
        progress: follows what is being run.

    Raises:
        UserError: the folder holds something else, or compare.json has another format.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        *,
        dataset: Dataset | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.plan, self.folder = plan, folder
        self._dataset, self._progress = dataset, progress or NoProgress()
        self._file = folder / COMPARISON
        self._tuning: dict[str, list[Trial]] = {}
        self._failed: dict[Path, str] = {}
        self._lock = claim(folder)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.release()

    def _open(self) -> None:
        try:
            if self._file.exists():
                kept = parse(self._file.read_bytes(), ComparisonResult)
                if kept.plan != self.plan.record():
                    raise UserError(
                        f"--out {self.folder} holds another comparison; repeat its settings to go "
                        "on with it, or name another folder"
                    )
                self._tuning = kept.tuning
            elif not is_empty(self.folder):
                raise UserError(f"--out {self.folder} is not empty; name another folder")
            self._save(())
        except FormatError as error:
            raise UserError(
                f"--out {self.folder}: {COMPARISON} has {error}; name another folder"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot use --out {self.folder}: {error}") from None

    def run(self) -> ComparisonResult:
        """Tune, run every cell that is not finished, and return what `compare --json` prints.

        A cell that fails, for whatever reason, says why, and the others are run.

        Raises:
            WriteError: compare.json cannot be written.
        """
        ordered = sorted(self.plan.methods, key=lambda name: name != self.plan.reference)
        factors = {name: self._tuned(name) for name in ordered}
        for seed in self.plan.seeds:
            for name in ordered:
                if not self._finished(name, seed):
                    self._run_cell(name, seed, factors[name])
        return self.result()

    # -- cells ------------------------------------------------------------------------------

    def cell(self, name: str, seed: int) -> Path:
        """Return the folder of one cell."""
        return self.folder / "cells" / f"{name}-seed{seed}"

    def _finished(self, name: str, seed: int) -> bool:
        return self._summary(name, seed) is not None

    def _summary(self, name: str, seed: int) -> Summary | None:
        """Return a finished cell's summary; None for a cell that has to be run (again)."""
        try:
            return parse((self.cell(name, seed) / SUMMARY).read_bytes(), Summary)
        except (OSError, ValueError):
            return None

    def _run_cell(self, name: str, seed: int, factor: float) -> None:
        path = self.cell(name, seed)
        try:
            remove(path)
            with closing(RunFolder.create(path)) as folder:
                run = self._build(name, seed, factor)
                folder.start(run)
                run.after_round.append(lambda found: folder.record(row_of(run, found)))
                for _ in self._budget(name, seed).limited(run):
                    pass
                draw_pictures(run, path)
                summary = summarise(run)
                folder.write_summary(
                    msgspec.structs.replace(summary, method=name, step_size_factor=factor)
                )
        except Exception as error:  # noqa: BLE001 - one cell must not take the others with it
            self._fail(path, error)

    def _fail(self, path: Path, error: Exception) -> None:
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self._failed[path] = told
        with suppress(WriteError):  # compare.json has it too
            make_folder(path)
            replace(path / FAILED, told + "\n")

    def _build(self, name: str, seed: int, factor: float, rounds: int | None = None) -> Run:
        """Return a run that has not begun, with its step size multiplied by ``factor``."""
        method = parse_method(name, secure=bool(self.plan.options.get("secure", True)))
        config = self.plan.config(method, seed)
        self._progress.start(f"{name}, seed {seed}", 1)
        if not method.dreams:
            settings = self.plan.settings
            if method.family in OWN_OPTIMIZER:
                config = scaled(config, factor)
            rate = settings.learning_rate * factor
            settings = dataclasses.replace(settings, learning_rate=rate)
            return BaselineRun(
                config, method, settings, dataset=self._dataset, progress=self._progress
            )
        config = scaled(config, factor)
        if rounds is None and name != self.plan.reference and not config.private:
            rounds = config.dream.rounds if self.plan.match == "rounds" else MAX_ROUNDS
        if rounds is not None:
            config = dataclasses.replace(
                config, dream=dataclasses.replace(config.dream, rounds=rounds)
            )
        return Simulation(
            config, dataset=self._dataset, progress=self._progress, compare_independent=False
        )

    def _budget(self, name: str, seed: int) -> Budget:
        """Return what a cell may spend: as much as the reference spent with the same seed."""
        own = self.plan.config(parse_method(name), seed)
        # The noise of a private run was computed for its number of rounds.
        if name == self.plan.reference or own.private:
            return Budget("rounds", own.dream.rounds)
        reference = self._summary(self.plan.reference, seed)
        if reference is None:
            raise UserError(f"the reference, {self.plan.reference}, failed: nothing to match")
        return cost_of(self.plan.match, _costs_of(reference), parse_method(name))

    # -- tuning -----------------------------------------------------------------------------

    def _tuned(self, name: str) -> float:
        """Return the factor on the step size that reached the best validation accuracy."""
        if self.plan.trials == 1 or self.plan.config(parse_method(name), 0).private:
            return 1.0
        tried = self._tuning.setdefault(name, [])
        for factor in FACTORS[len(tried) : self.plan.trials]:
            try:
                tried.append(self._trial(name, factor))
            except Exception:  # noqa: BLE001
                # The cell itself will fail for the same reason, which its folder then names.
                tried.append(Trial(factor=factor, validation=0.0))
            self._save(())
        return max(tried, key=lambda trial: trial.validation).factor

    def _trial(self, name: str, factor: float) -> Trial:
        seed = self.plan.seeds[0]
        method = parse_method(name)
        rounds = max(1, self.plan.config(method, seed).dream.rounds // _TRIAL_PART)
        reference = self._tuning.get(self.plan.reference, [])
        if name == self.plan.reference or not reference:
            budget = Budget("rounds", rounds)
            run = self._build(name, seed, factor, rounds)
        else:
            budget = cost_of(self.plan.match, _costs_of_trial(reference[0], rounds), method)
            run = self._build(name, seed, factor, MAX_ROUNDS if method.dreams else None)
        for _ in budget.limited(run):
            pass
        return Trial(
            factor=factor,
            validation=run.observer.history[-1].validation or 0.0,
            iterations=Budget("iterations", 0).spent(run),
            seconds=Budget("seconds", 0).spent(run),
            bytes=Budget("bytes", 0).spent(run),
        )

    # -- results ----------------------------------------------------------------------------

    def result(self) -> ComparisonResult:
        """Write what `found` returns to compare.json, and return it.

        Raises:
            WriteError: it cannot be written.
        """
        return self._save(self.found().rows)

    def found(self) -> ComparisonResult:
        """Return settings, tuning and one row a method, of the cells that are finished so far."""
        return self._record(tuple(self._row(name) for name in self.plan.methods))

    def _row(self, name: str) -> MethodRow:
        cells = {seed: self._cell(name, seed) for seed in self.plan.seeds}
        return MethodRow(method=name, cells=cells, mean=means(list(cells.values())))

    def _cell(self, name: str, seed: int) -> Cell:
        path, summary = self.cell(name, seed), self._summary(name, seed)
        shown = None
        if summary:
            shown = figures(parse_method(name), read_rows(path), summary, self.plan.target)
        return Cell(
            folder=str(path.relative_to(self.folder)),
            failed=None if summary else self._reason(name, seed),
            figures=shown,
        )

    def _reason(self, name: str, seed: int) -> str:
        path = self.cell(name, seed)
        try:
            return self._failed.get(path) or text_of(path / FAILED).strip()
        except UserError:
            return "not run"

    def _save(self, rows: tuple[MethodRow, ...]) -> ComparisonResult:
        result = self._record(rows)
        replace(self._file, pretty(result))
        return result

    def _record(self, rows: tuple[MethodRow, ...]) -> ComparisonResult:
        return ComparisonResult(
            format=FORMAT,
            plan=self.plan.record(),
            reference=self.plan.reference,
            tuning=self._tuning,
            rows=rows,
        )


def scaled(config: Resolved, factor: float) -> Resolved:
    """Return the settings with the step size on models multiplied."""
    learning = config.learning
    rate = learning.learning_rate * factor
    return dataclasses.replace(config, learning=dataclasses.replace(learning, learning_rate=rate))


def _costs_of(summary: Summary) -> dict[Match, float]:
    return {
        "rounds": summary.rounds_finished,
        "iterations": summary.iterations,
        "seconds": summary.seconds.busy,
        "bytes": summary.bytes.both,
    }


def _costs_of_trial(trial: Trial, rounds: int) -> dict[Match, float]:
    if trial.iterations is None or trial.seconds is None or trial.bytes is None:
        raise UserError("the trial of the reference failed: nothing to match")
    return {
        "rounds": rounds,
        "iterations": trial.iterations,
        "seconds": trial.seconds,
        "bytes": trial.bytes,
    }
