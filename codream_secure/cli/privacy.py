"""`codream-secure privacy`: compute figures of differential privacy without a federation."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from codream_secure.cli.help import Group
from codream_secure.cli.options import number
from codream_secure.config import bounds
from codream_secure.errors import UserError
from codream_secure.privacy.accounting import (
    Release,
    check_mechanism,
    privacy_cost,
    training,
)
from codream_secure.privacy.forecast import MOST_BITS, Forecast, predict
from codream_secure.privacy.guarantee import GROUPS, group_epsilons
from codream_secure.privacy.mechanisms import (
    DiscreteGaussianSum,
    SkellamSum,
)
from codream_secure.privacy.noise_search import noise_multiplier_for
from codream_secure.runs.files import read_summary

_delta = number("--delta", of=bounds.Delta, told="delta", default=1e-5, show_default=True)
_rate = number(
    "--sampling-rate", of=bounds.Share, told="Poisson rate q", default=1.0, show_default=True
)
_json = click.option("--json", "as_json", is_flag=True, help="print JSON and nothing else")


@click.group(cls=Group)
def privacy() -> None:
    """Compute figures of differential privacy."""


@privacy.command(
    epilog="""\b
Examples:
  codream-secure privacy epsilon --noise-multiplier 3.8 --steps 40
  codream-secure privacy epsilon --noise-multiplier 1.1 --sampling-rate 0.01 --steps 1000 --json
  codream-secure privacy epsilon runs/20261123-181028-codream-digits
"""
)
@click.argument("run_dir", type=Path, required=False)
@number(
    "--noise-multiplier",
    of=bounds.NoiseMultiplier,
    told="standard deviation of the noise over the clip",
)
@_rate
@number("--steps", of=bounds.Positive, told="private steps")
@_delta
@_json
def epsilon(
    *,
    run_dir: Path | None,
    noise_multiplier: float | None,
    sampling_rate: float,
    steps: int | None,
    delta: float,
    as_json: bool,
) -> None:
    """Print the epsilon of DP-SGD steps, or of everything that the run in RUN_DIR released."""
    if run_dir is not None:
        if noise_multiplier is not None or steps is not None:
            raise UserError(
                "give RUN_DIR or a mechanism (--noise-multiplier and --steps), not both"
            )
        releases, delta = _of_run(run_dir)
    elif noise_multiplier is None or steps is None:
        raise UserError("give RUN_DIR, or --noise-multiplier and --steps")
    else:
        check_mechanism(noise_multiplier, sampling_rate)
        if steps < 1:
            raise UserError(f"--steps must be at least 1, not {steps}")
        releases = (training(noise_multiplier, sampling_rate, steps),)
    found = privacy_cost(releases, delta)
    groups = group_epsilons(releases, delta)
    if as_json:
        told: dict[str, Any] = {
            "epsilon": found.epsilon,
            "delta": delta,
            "accountant": found.accountant,
        }
        told |= {"rdp_epsilon": found.rdp, "groups": groups}
        click.echo(json.dumps(told | {"releases": msgspec.to_builtins(releases)}))
        return
    rows = [
        ("epsilon", f"{found.epsilon:.4f} at delta {delta:g} ({found.accountant})"),
        ("by RDP", f"{found.rdp:.4f}"),
        *((f"{k} together", _shown(groups[k])) for k in GROUPS),
        *((release.name, _mechanism(release)) for release in releases),
        ("unit", releases[0].unit),
        ("adjacency", releases[0].adjacency),
    ]
    _print(rows)


@privacy.command(
    epilog="""\b
Examples:
  codream-secure privacy noise --eps 8 --steps 40
  codream-secure privacy noise --eps 1 --sampling-rate 0.05 --steps 600 --json
"""
)
@number("--eps", of=bounds.Epsilon, required=True, told="epsilon of all steps together")
@_rate
@number("--steps", of=bounds.Positive, required=True, told="private steps in total")
@_delta
@_json
def noise(*, eps: float, sampling_rate: float, steps: int, delta: float, as_json: bool) -> None:
    """Print the smallest noise multiplier with which DP-SGD steps fit an epsilon."""
    found = noise_multiplier_for(eps, delta, sampling_rate, steps)
    spent = privacy_cost([training(found, sampling_rate, steps)], delta)
    if as_json:
        click.echo(json.dumps({"noise_multiplier": found, "epsilon": spent.epsilon}))
    else:
        _print([("noise multiplier", f"{found:.4f}"), ("epsilon", f"{spent.epsilon:.4f}")])


@privacy.command(
    epilog="""\b
Examples:
  codream-secure privacy plan --clients 10 --examples 1400 --dims 650
  codream-secure privacy plan --clients 1000 --dims 25600 --releases 100 --eps 4 --json
"""
)
@number("--clients", of=bounds.Roster, required=True, told="clients that share the noise")
@number("--examples", of=bounds.Examples, told="examples of all clients together")
@number("--dims", of=bounds.Examples, required=True, told="numbers in one release")
@number("--releases", of=bounds.Positive, told="how many there are", default=1, show_default=True)
@number("--eps", of=bounds.Epsilon, told="epsilon of all", default=8.0, show_default=True)
@number(
    "--agreement",
    of=bounds.Share,
    default=1.0,
    show_default=True,
    told="how much contributions point the same way: 1 fully, 1 / sqrt(n) not at all",
)
@_delta
@_json
def plan(
    *,
    clients: int,
    examples: int | None,
    dims: int,
    releases: int,
    eps: float,
    agreement: float,
    delta: float,
    as_json: bool,
) -> None:
    """Print signal, noise and bits of masked sums with noise, for each unit of privacy."""
    common: dict[str, Any] = {
        "clients": clients,
        "dimensions": dims,
        "releases": releases,
        "epsilon": eps,
        "delta": delta,
        "agreement": agreement,
    }
    found = [predict("client", contributions=clients, **common)]
    if examples is not None:
        found.append(predict("example", contributions=examples, **common))
    if as_json:
        click.echo(json.dumps([asdict(forecast) for forecast in found]))
        return
    from rich.table import Table  # noqa: PLC0415 - --help answers at once

    from codream_secure.report.text import stdout  # noqa: PLC0415

    table = Table(caption="signal / noise is an upper bound; below 1 the sum says little")
    for name in ("unit", "summed", "noise / clip", "signal / noise", "of one release", "cosine"):
        table.add_column(name)
    table.add_column("needed for 1")
    table.add_column("bits")
    for forecast in found:
        table.add_row(*_cells(forecast))
    stdout().print(table)


def _cells(forecast: Forecast) -> tuple[str, ...]:
    too_many = f"{forecast.bits} (at most {MOST_BITS})"
    return (
        forecast.unit,
        f"{forecast.contributions:,}",
        f"{forecast.noise_multiplier:.3g}",
        f"{forecast.ratio:.3g}",
        f"{forecast.ratio_each:.3g}",
        f"{forecast.cosine:.3f}",
        f"{forecast.needed:,}",
        str(forecast.bits) if forecast.bits <= MOST_BITS else too_many,
    )


def _of_run(folder: Path) -> tuple[tuple[Release, ...], float]:
    """Return the releases of a run, and its delta."""
    summary = read_summary(folder)
    if summary is None:
        raise UserError(f"{folder} is not the folder of a finished run")
    if summary.privacy is None:
        raise UserError(f"the run in {folder} has no differential privacy (--dp-eps)")
    return summary.privacy.releases, summary.privacy.delta


def _mechanism(release: Release) -> str:
    found = release.mechanism
    if isinstance(found, SkellamSum):
        return (
            f"{release.steps} release(s), Skellam noise of variance {found.variance:,.0f}, "
            f"sensitivity {found.l2:,.0f}"
        )
    if isinstance(found, DiscreteGaussianSum):
        return (
            f"{release.steps} release(s), {found.shares} shares of discrete Gaussian noise of "
            f"variance {found.variance:,.0f}, sensitivity {found.l2:,.0f}"
        )
    return (
        f"{release.steps} steps, noise multiplier {found.noise_multiplier:.4f}, "
        f"sampling rate {found.sampling_rate:g}"
    )


def _shown(value: float | None) -> str:
    return "beyond any use" if value is None else f"epsilon {value:.2f}"


def _print(rows: list[tuple[str, str]]) -> None:
    from rich.table import Table  # noqa: PLC0415 - --help answers at once

    from codream_secure.report.text import stdout  # noqa: PLC0415

    table = Table(show_header=False)
    for row in rows:
        table.add_row(*row)
    stdout().print(table)
