"""Running a comparison, cell by cell, in a folder that it can go on in.

Read `Comparison.run` first. The first method that dreams (else the first method) is the
reference: it runs its own number of rounds, and what that costs is what every other method may
spend. A method goes on round by round as long as the next round fits.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from codream_secure.baselines.methods import parse_method
from codream_secure.baselines.run import BaselineRun
from codream_secure.compare.plan import MAX_ROUNDS, Budget, Plan, cost_of
from codream_secure.compare.results import figures, means, read_metrics
from codream_secure.config.resolved import Resolved
from codream_secure.data.datasets import Dataset
from codream_secure.errors import UserError
from codream_secure.federation.rounds import NoProgress, Progress
from codream_secure.federation.run import Run
from codream_secure.federation.simulation import Simulation
from codream_secure.report.charts import draw_pictures
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.summary import summarise

SCHEMA_VERSION = 1
# How the step size is varied; the first is the default, so one trial is no tuning.
FACTORS = (1.0, 1 / 3, 3.0, 0.1, 10.0)
_TRIAL_PART = 4


class Comparison:
    """A comparison and the folder that it is kept in.

    Args:
        plan: what to run.
        folder: new, empty, or one in which the same plan was begun: finished cells stay.
        dataset: in place of the one that the settings name.
        progress: told what is going on.

    Raises:
        UserError: the folder holds something else.
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
        self._file = folder / "compare.json"
        self._tuning: dict[str, list[dict[str, float]]] = {}
        self._open()

    def _open(self) -> None:
        state = json.loads(json.dumps(self.plan.state()))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._file.exists():
                kept = json.loads(self._file.read_text(encoding="utf-8"))
                if kept.get("plan") != state:
                    raise UserError(
                        f"--out {self.folder} holds another comparison; repeat its settings to go "
                        "on with it, or name another folder"
                    )
                self._tuning = kept["tuning"]
            elif any(self.folder.iterdir()):
                raise UserError(f"--out {self.folder} is not empty; name another folder")
            self._save([])
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"cannot use --out {self.folder}: {error}") from None

    def run(self) -> dict[str, Any]:
        """Tune, run every cell that is not finished, and return what `compare --json` prints."""
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

    def _summary(self, name: str, seed: int) -> dict[str, Any] | None:
        try:
            text = (self.cell(name, seed) / "summary.json").read_text(encoding="utf-8")
            return dict(json.loads(text))
        except (OSError, ValueError):
            return None

    def _run_cell(self, name: str, seed: int, factor: float) -> None:
        path = self.cell(name, seed)
        shutil.rmtree(path, ignore_errors=True)
        folder = RunFolder.create(path)
        try:
            run = self._build(name, seed, factor)
            folder.start(run)
            run.after_round.append(partial(folder.record, run))
            for _ in self._budget(name, seed).limited(run):
                pass
        except UserError as error:
            self._fail(path, str(error))
        except (RuntimeError, ValueError, ArithmeticError) as error:
            self._fail(path, f"{type(error).__name__}: {error}")
        else:
            summary = summarise(run) | {"method": name, "step_size_factor": factor}
            folder.finish(run, summary, cell=True)
            draw_pictures(run, path)

    @staticmethod
    def _fail(path: Path, reason: str) -> None:
        (path / "failed.txt").write_text(reason + "\n", encoding="utf-8")

    def _build(self, name: str, seed: int, factor: float, rounds: int | None = None) -> Run:
        """Return a run that has not begun; a tuned step size is put in."""
        method = parse_method(name, secure=bool(self.plan.options.get("secure", True)))
        config = self.plan.config(method, seed)
        self._progress.start(f"{name}, seed {seed}", 1)
        if not method.dreams:
            settings = self.plan.settings
            if method.family == "independent":
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
        """Return what a cell may spend: as much as the reference of the same seed did."""
        own = self.plan.config(parse_method(name), seed)
        if name == self.plan.reference:
            return Budget("rounds", own.dream.rounds or 1)
        if own.private:
            # The privacy budget was computed for that many rounds.
            return Budget("rounds", own.dream.rounds or 1)
        reference = self._summary(self.plan.reference, seed)
        if reference is None:
            raise UserError(f"the reference, {self.plan.reference}, failed: nothing to match")
        return cost_of(self.plan.match, _costs(reference), parse_method(name))

    # -- tuning -----------------------------------------------------------------------------

    def _tuned(self, name: str) -> float:
        """Return the factor on the step size that did best on validation, at equal trials."""
        if self.plan.trials == 1 or self.plan.config(parse_method(name), 0).private:
            return 1.0
        tried = self._tuning.setdefault(name, [])
        for factor in FACTORS[len(tried) : self.plan.trials]:
            try:
                tried.append(self._trial(name, factor))
            except (UserError, RuntimeError, ValueError, ArithmeticError):
                # The cell itself will fail in the same way and say why.
                tried.append({"factor": factor, "validation": 0.0})
            self._save([])
        return max(tried, key=lambda trial: trial["validation"])["factor"]

    def _trial(self, name: str, factor: float) -> dict[str, float]:
        seed = self.plan.seeds[0]
        method = parse_method(name)
        rounds = max(1, (self.plan.config(method, seed).dream.rounds or 1) // _TRIAL_PART)
        reference = self._tuning.get(self.plan.reference, [])
        if name == self.plan.reference or not reference:
            budget = Budget("rounds", rounds)
            run = self._build(name, seed, factor, rounds)
        else:
            budget = cost_of(self.plan.match, {"rounds": rounds, **reference[0]}, method)
            run = self._build(name, seed, factor, MAX_ROUNDS if method.dreams else None)
        for _ in budget.limited(run):
            pass
        costs = {kind: Budget(kind, 0).spent(run) for kind in ("iterations", "seconds", "bytes")}
        last = run.observer.history[-1]
        return {"factor": factor, "validation": last.validation or 0.0, **costs}

    # -- results ----------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Return settings, tuning and one row a method, and write them to compare.json."""
        rows = [self._row(name) for name in self.plan.methods]
        self._save(rows)
        return self._state(rows)

    def _row(self, name: str) -> dict[str, Any]:
        found = {seed: self._summary(name, seed) for seed in self.plan.seeds}
        cells = {
            seed: {
                "folder": str(self.cell(name, seed).relative_to(self.folder)),
                "failed": self._reason(name, seed) if summary is None else None,
                **({} if summary is None else self._figures(name, seed, summary)),
            }
            for seed, summary in found.items()
        }
        return {"method": name, "cells": cells, "mean": means(list(cells.values()))}

    def _reason(self, name: str, seed: int) -> str:
        try:
            return (self.cell(name, seed) / "failed.txt").read_text(encoding="utf-8").strip()
        except OSError:
            return "not run"

    def _figures(self, name: str, seed: int, summary: Mapping[str, Any]) -> dict[str, Any]:
        rows = read_metrics(self.cell(name, seed))
        return figures(parse_method(name), rows, summary, self.plan.target)

    def _state(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "plan": json.loads(json.dumps(self.plan.state())),
            "reference": self.plan.reference,
            "tuning": self._tuning,
            "rows": rows,
        }

    def _save(self, rows: list[dict[str, Any]]) -> None:
        text = json.dumps(self._state(rows), indent=2) + "\n"
        part = self._file.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self._file)


def scaled(config: Resolved, factor: float) -> Resolved:
    """Return the settings with the step size on models multiplied."""
    learning = config.learning
    rate = learning.learning_rate * factor
    return dataclasses.replace(config, learning=dataclasses.replace(learning, learning_rate=rate))


def _costs(summary: Mapping[str, Any]) -> dict[str, float]:
    sizes = summary["bytes"]
    return {
        "rounds": summary["rounds_finished"],
        "iterations": summary["iterations"],
        "seconds": summary["seconds"]["busy"],
        "bytes": sizes["per_client_up"] + sizes["per_client_down"],
    }
