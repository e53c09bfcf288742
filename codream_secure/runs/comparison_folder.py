"""Finds the cells in a comparison's folder, and the command that makes a folder again."""

from pathlib import Path

from codream_secure.errors import UserError
from codream_secure.runs.commands import command_line
from codream_secure.runs.comparison_format import ComparisonResult, PlanRecord
from codream_secure.runs.files import CELLS, is_cell, read_record, text_of
from codream_secure.runs.formats import COMPARISON, CONFIG, METRICS, SUMMARY
from codream_secure.storage.looking import is_file, is_folder, listed

# A cell that failed has the reason in this file, in place of a summary.
FAILED = "failed.txt"
# The option of `compare` for a setting of the baselines, where there is one.
_BASELINE_OPTIONS = {
    "local_epochs": "fed_epochs",
    "learning_rate": "fed_lr",
    "prox": "prox",
    "moon_weight": "moon_weight",
    "messenger": "messenger",
}


def is_run(folder: Path) -> bool:
    """Tell whether a folder looks like that of a run.

    Raises:
        UserError: it cannot be read.
    """
    return is_file(folder / CONFIG) and is_file(folder / METRICS)


def is_comparison(folder: Path) -> bool:
    """Tell whether a folder holds the cells of a comparison.

    Raises:
        UserError: it cannot be read.
    """
    return is_folder(folder / CELLS)


def cells(folder: Path) -> list[Path]:
    """Return the run folders of a comparison that are finished, by name.

    Raises:
        UserError: the folder of the cells cannot be read.
    """
    return [path for path in listed(folder / CELLS) if not _lacks(path)]


def missing(folder: Path) -> dict[str, str]:
    """Return why cells of a comparison have no results, by the name of their folder.

    Raises:
        UserError: the folder of the cells cannot be read.
    """
    if not is_comparison(folder):
        return {}
    folders = [path for path in listed(folder / CELLS) if is_folder(path)]
    return {path.name: why for path in folders if (why := _lacks(path))}


def unreadable_cells(folder: Path) -> list[Path]:
    """Return the folders of cells that may not be read.

    Raises:
        UserError: the folder of the cells cannot be read.
    """
    return [path for path in listed(folder / CELLS) if not _readable(path)]


def _readable(cell: Path) -> bool:
    try:
        is_run(cell)
    except UserError:
        return False
    return True


def _lacks(cell: Path) -> str:
    """Return why a cell has no result; nothing if it has one."""
    try:
        if is_run(cell) and is_file(cell / SUMMARY):
            return ""
        failed = cell / FAILED
        return text_of(failed).strip() if is_file(failed) else "not finished"
    except UserError as error:
        return str(error)


def rerun(folder: Path) -> str:
    """Return the command that makes a run or a comparison again; of a cell, its comparison's.

    Raises:
        UserError: compare.json is damaged, or it was written in another format.
    """
    whole = folder.resolve().parent.parent if is_cell(folder) else folder
    if is_comparison(whole):
        plan = _plan(whole)
        return compare_command(plan) if plan else command_line("compare", {})
    return command_line("simulate", {"config": folder / CONFIG})


def matched(folder: Path) -> str | None:
    """Return in words which cost all methods of a comparison might spend equally."""
    plan = _plan(folder) if is_comparison(folder) else None
    return None if plan is None else f"Every method might spend equal {plan.match}."


def _plan(folder: Path) -> PlanRecord | None:
    """Return what a comparison was begun with; None if nothing is on record."""
    path = folder / COMPARISON
    return read_record(path, ComparisonResult).plan if path.is_file() else None


def compare_command(plan: PlanRecord, out: Path | None = None) -> str:
    """Return the command that runs a plan; ``out``: in the same folder again."""
    options: dict[str, object] = {
        "methods": ",".join(plan.methods),
        "seeds": ",".join(map(str, plan.seeds)),
        "match": plan.match,
        "trials": plan.trials,
        "target": plan.target,
        **{option: plan.settings.get(name) for name, option in _BASELINE_OPTIONS.items()},
        **plan.options,
        "out": out,
    }
    return command_line("compare", options)
