"""`audit_privacy`: attacks on what is claimed to be private, as a function."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from msgspec import inspect

from codream_secure.api.data import Data, options_of
from codream_secure.api.steps import OnStep, progress_of
from codream_secure.audit import everything
from codream_secure.audit.attacked import attacked
from codream_secure.audit.findings import PrivacyAudit, violated
from codream_secure.config.bounds import Shadows, bounds_of, checked
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.errors import UserError
from codream_secure.federation.rounds import Progress
from codream_secure.report.page import write_report
from codream_secure.runs.formats import pretty
from codream_secure.storage.files import replace
from codream_secure.storage.folder_lock import claimed


def audit_privacy(
    run: str | Path | None = None,
    *,
    data: Data | str | Path | None = None,
    shadows: int = 8,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    on_step: OnStep | None = None,
    **options: object,
) -> PrivacyAudit:
    """Attack the mechanisms and a federation: what `codream-secure audit privacy` does.

    Args:
        run: folder of a run, whose settings are attacked; its page then shows the audit.
        data: without `run`: what the federation trains on. None: the digits.
        shadows: runs for membership inference, with DP and without.
        only: parts of the audit: "sums", "steps", "one-run", "membership", "inversion",
            "differences".
        out: folder for audit.json and the shadows' results; None: that of the run, or none.
        on_step: called with an activity, how many of its steps are done, and how many it has.
        options: without `run`: settings of the federation, such as `clients` and `dp_eps`.

    Returns:
        All findings; `violated` names the claims that were refuted.

    Raises:
        UserError: one line that says what is wrong with an argument and how to fix it.
    """
    dataset = data.dataset if isinstance(data, Data) else None
    if unknown := set(only) - set(everything.PARTS):
        raise UserError(f"only: there is no {min(unknown)!r}; {', '.join(everything.PARTS)}")
    try:
        checked(shadows, int, Shadows, bounds_of(inspect.type_info(Shadows)))
    except ValueError as error:
        raise UserError(f"shadows must be {error}, not {shadows!r}") from None
    folder = None if run is None else Path(run)
    config = attacked(folder, {**options, **options_of(data, options)})
    return carry_out(
        config,
        dataset,
        parts=only,
        shadows=shadows,
        out=folder if out is None else Path(out),
        run=folder,
        progress=progress_of(on_step),
    )


def carry_out(
    config: Config,
    dataset: Dataset | None,
    *,
    parts: Sequence[str],
    shadows: int,
    out: Path | None,
    run: Path | None,
    progress: Progress,
) -> PrivacyAudit:
    """Run an audit and write its result.

    Args:
        config: of the federation that is attacked.
        dataset: None: the one that the settings name.
        parts: of the audit; empty: all.
        shadows: runs for membership inference.
        out: folder of audit.json; None: nothing is written.
        run: the run that is attacked, whose page shows the audit if it is `out`; None: none.
        progress: follows the audit.

    Raises:
        UserError: the data cannot be read, or the folder cannot be used.
    """
    began = time.perf_counter()
    chosen = config.data
    with nullcontext() if out is None else claimed(out):
        found = everything.run(
            config,
            dataset or load_dataset(chosen.dataset, Path(chosen.data_dir), chosen.image_size),
            parts=parts or tuple(everything.PARTS),
            shadows=shadows,
            folder=None if out is None else out / "audit-shadows",
            start=progress.start,
            advance=progress.advance,
        )
        result = PrivacyAudit(
            findings=found,
            violated=violated(found),
            config=config.options(),
            shadows=shadows,
            seconds=round(time.perf_counter() - began, 1),
        )
        if out is not None:
            replace(out / "audit.json", pretty(result))
            if out == run:
                write_report(out)
    return result
