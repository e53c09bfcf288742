"""`codream-secure compare`: several methods over the same data and seeds, in one table."""

import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from codream_secure.cli.ending import end_like_interrupt, undisturbed
from codream_secure.cli.exit_codes import EXIT_BAD_INPUT, EXIT_INCOMPLETE, EXIT_INTERRUPTED
from codream_secure.cli.help import Command
from codream_secure.cli.options import (
    given_settings,
    number,
    run_options,
    sources,
    tell_classes,
)
from codream_secure.config import bounds
from codream_secure.config.aliases import option
from codream_secure.config.early import check_methods, check_names
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.runs.comparison_folder import compare_command
from codream_secure.runs.formats import compact, pretty
from codream_secure.storage.folder_lock import new_folder

if TYPE_CHECKING:
    from codream_secure.compare.plan import Plan
    from codream_secure.runs.comparison_format import ComparisonResult

_EXAMPLES = """\b
Examples:
  codream-secure compare --methods codream,fedavg,fedavg-secure --clients 10
  codream-secure compare --methods codream-fast,avgkd --models lenet5,mlp --seeds 0,1,2
  codream-secure compare --methods codream,fedavg-secure-8bit --match bytes --target 0.85
  codream-secure compare --methods codream,scaffold --out mine      (again: goes on)
"""
_OTHERS = cloup.OptionGroup("Other methods, and tuning")
_DISPLAY = cloup.OptionGroup("Sizes alone, and display")


@click.command(cls=Command, epilog=_EXAMPLES)
@click.option(
    "--methods",
    default="codream,codream-fast,fedavg,fedavg-secure,independent",
    show_default=True,
    help="comma-separated: codream, codream-fast, codream-messenger, fedmd (labelled noise), "
    "avgkd, fedgen, "
    "fedgh, fedtgp, independent, centralized; fedavg, fedprox, scaffold, moon, and for models of "
    "any kind fd, lg-fedavg, fml, fedkd, fedproto, fedmrl, each also with -secure (masked), -8bit "
    "or -secure-8bit as suffix",
)
@click.option("--seeds", default="0", show_default=True, help="comma-separated seeds of runs")
@click.option(
    "--match",
    type=click.Choice(["rounds", "iterations", "seconds", "bytes"]),
    default="iterations",
    show_default=True,
    help="what is equal: every method may spend as much of it as the first that dreams; "
    "iterations: a client's forward and backward passes, including dreaming and distillation",
)
@number(
    "--trials",
    group=_OTHERS,
    of=bounds.Trials,
    default=3,
    show_default=True,
    told="step sizes tried for every method on validation, at a quarter of the rounds; 1: none",
)
@number(
    "--target",
    of=bounds.Fraction,
    told="report the bytes sent when this accuracy is reached, for instance 0.85",
)
@number(
    "--fed-epochs",
    group=_OTHERS,
    of=bounds.Epochs,
    default=5,
    show_default=True,
    told="local epochs of the baselines in each round",
)
@number(
    "--fed-lr",
    group=_OTHERS,
    of=bounds.StepSize,
    default=0.03,
    show_default=True,
    told="step size of the baselines' SGD; tuning starts from it",
)
@number(
    "--prox", of=bounds.Weight, default=0.01, show_default=True, group=_OTHERS, told="FedProx's mu"
)
@number(
    "--moon-weight",
    of=bounds.Weight,
    default=1.0,
    show_default=True,
    group=_OTHERS,
    told="MOON's mu",
)
@cloup.option(
    "--messenger",
    group=_OTHERS,
    default="lenet5",
    show_default=True,
    help="architecture of the small common model that codream-messenger, messenger, fml, fedkd and "
    "fedmrl train beside the clients' own",
)
@cloup.option(
    "--sizes",
    "only_sizes",
    is_flag=True,
    group=_DISPLAY,
    help="train nothing: print the bytes of a round at the paper's shapes, and the model size "
    "above which dreams are smaller (4 clients, 5 batches of 256 dreams of 3x32x32, 2 bits; change "
    "them with --clients, --dreams, --dream-batches, --bits, --dream-steps); --out for a picture",
)
@run_options(without=("method", "seed", "label_last_step", "messenger"))
@sources
@click.option(
    "--out",
    type=Path,
    help="folder for the results; finished cells in it are not run again  "
    "[default: comparisons/<time>]",
)
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON and nothing else")
@cloup.option("--quiet", is_flag=True, group=_DISPLAY, help="no progress display and no table")
def compare(
    *,
    methods: str,
    seeds: str,
    match: str,
    trials: int,
    target: float | None,
    fed_epochs: int,
    fed_lr: float,
    prox: float,
    moon_weight: float,
    messenger: str,
    preset: str | None,
    config_file: Path | None,
    out: Path | None,
    only_sizes: bool,
    as_json: bool,
    quiet: bool,
    **options: object,
) -> None:
    """Run several methods on the same data, at equal cost, and compare them."""
    given = given_settings(options, config_file, preset)
    if only_sizes:
        _sizes(given, out, as_json=as_json, quiet=quiet)
        return
    names, numbers = tuple(name.strip() for name in methods.split(",")), _numbers(seeds)
    config = Config.from_options(given)
    check_names(config)
    check_methods(names, config)
    from codream_secure.baselines.base import BaselineSettings  # noqa: PLC0415 - imports torch
    from codream_secure.compare.plan import Plan, as_match  # noqa: PLC0415
    from codream_secure.report import drawing  # noqa: F401, PLC0415 - fails now, not later

    baselines = BaselineSettings(
        local_epochs=fed_epochs,
        learning_rate=fed_lr,
        prox=prox,
        moon_weight=moon_weight,
        messenger=messenger,
    )
    plan = Plan(
        methods=names,
        seeds=numbers,
        options=given,
        settings=baselines,
        match=as_match(match),
        trials=trials,
        target=target,
    )
    if not (quiet or as_json):
        tell_classes(config.data.dataset)
    folder = out or new_folder(Path("comparisons") / time.strftime("%Y%m%d-%H%M%S"))
    sys.exit(_compare(plan, folder, as_json=as_json, quiet=quiet))


def _compare(plan: "Plan", folder: Path, *, as_json: bool, quiet: bool) -> int:
    """Run all cells that are not finished, print the result, and return the exit code."""
    from codream_secure.api.compare import carry_out  # noqa: PLC0415 - slow to import
    from codream_secure.report.page import PAGE  # noqa: PLC0415
    from codream_secure.report.progress import LiveProgress  # noqa: PLC0415
    from codream_secure.report.table import comparison_table  # noqa: PLC0415
    from codream_secure.report.text import stderr, stdout  # noqa: PLC0415

    end_like_interrupt()
    with LiveProgress(stderr(quiet=quiet or as_json)) as progress:
        ended = carry_out(plan, folder, None, progress, undisturbed)
    if ended.interrupted:
        again = compare_command(plan.record(), folder)
        click.echo(f"interrupted; go on with: {again}", err=True)
    elif ended.unwritten:
        click.echo(f"error: {ended.unwritten}", err=True)
    elif not ended.any_done:
        _tell_failures(ended.result)  # there is no table that would say so
    if as_json:
        click.echo(compact(ended.result))
    elif ended.any_done and not quiet:
        console = stdout()
        console.print(comparison_table(ended.result))
        if (folder / PAGE).is_file():
            console.print(f"written to {folder}, the page is {PAGE}", soft_wrap=True)
    if ended.interrupted:
        return EXIT_INTERRUPTED
    if ended.unwritten:
        return EXIT_INCOMPLETE if ended.any_done else EXIT_BAD_INPUT
    failed = any(cell.failed for row in ended.result.rows for cell in row.cells.values())
    return EXIT_INCOMPLETE if failed else 0


def _tell_failures(result: "ComparisonResult") -> None:
    for row in result.rows:
        for reason in sorted({cell.failed for cell in row.cells.values() if cell.failed}):
            click.echo(f"{row.method} failed: {reason}", err=True)


_SHAPE = {
    "clients": "clients",
    "dreams": "dreams",
    "dream_batches": "batches",
    "bits": "bits",
    "label_bits": "label_bits",
    "dream_steps": "dream_steps",
}


def _sizes(given: Mapping[str, Any], out: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Print the bytes of a round; if there is a folder, write them and a picture into it."""
    # First, and alone: it says what is wrong with a matplotlibrc, which the others' imports read.
    from codream_secure.report.drawing import own_settings  # noqa: PLC0415

    Config.from_options(given)
    from codream_secure.compare.round_bytes import draw_crossover, round_sizes  # noqa: PLC0415
    from codream_secure.report.pictures import draw_or_warn  # noqa: PLC0415
    from codream_secure.report.table import sizes_table  # noqa: PLC0415
    from codream_secure.report.text import stdout  # noqa: PLC0415
    from codream_secure.runs.sizes_format import Shape  # noqa: PLC0415
    from codream_secure.storage.files import replace  # noqa: PLC0415
    from codream_secure.storage.folder_lock import claimed  # noqa: PLC0415

    if unused := set(given) - set(_SHAPE):
        raise UserError(f"{option(min(unused))} cannot be used with --sizes: nothing is trained")
    shape = Shape(**{_SHAPE[name]: value for name, value in given.items()})
    found = round_sizes(shape)
    if out is not None:
        with claimed(out):
            replace(out / "sizes.json", pretty(found))
            with own_settings():
                draw_or_warn(partial(draw_crossover, shape), out / "crossover.png")
    if as_json:
        click.echo(compact(found))
    elif not quiet:
        stdout().print(sizes_table(found))


def _numbers(seeds: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in seeds.split(","))
    except ValueError:
        raise UserError(
            f"--seeds must be whole numbers, separated by commas, not {seeds!r}"
        ) from None
    if min(numbers) < 0:
        raise UserError(f"--seeds must not be negative, as in {seeds!r}")
    return numbers
