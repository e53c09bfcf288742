"""`codream-secure protocol`: compute figures of the masking protocol without a federation."""

import json
import sys
from dataclasses import asdict

import click

from codream_secure.cli.help import Group
from codream_secure.errors import UserError
from protocols.errors import ConfigError
from protocols.graph_parameters import RingModel, RingParameters, ring_parameters

NOTE = "for sessions with a Ring; simulate uses the complete graph"
_MALICIOUS = "malicious"
_COMPLETE_UP_TO = 100


_EXAMPLES = """\b
Examples:
  codream-secure protocol parameters --clients 1000 --corrupt 0.1 --dropouts 0.1
  codream-secure protocol parameters --clients 500 --corrupt 0.3 --dropouts 0.05 --json
"""


@click.group(cls=Group)
def protocol() -> None:
    """Compute figures of the masking protocol."""


@protocol.command(epilog=_EXAMPLES)
@click.option("--clients", type=int, required=True, help="number of clients, 3 to 16384")
@click.option("--corrupt", type=float, required=True, help="fraction that may collude, 0 to 1")
@click.option("--dropouts", type=float, required=True, help="fraction that may drop out, 0 to 1")
@click.option(
    "--sigma",
    type=int,
    default=40,
    show_default=True,
    help="privacy fails with probability at most 2^-sigma",
)
@click.option(
    "--eta",
    type=int,
    default=30,
    show_default=True,
    help="a step fails with probability at most 2^-eta",
)
@click.option(
    "--steps", type=int, default=1, show_default=True, help="steps for which one graph is used"
)
@click.option(
    "--threat-model",
    type=click.Choice([*(model.value for model in RingModel), _MALICIOUS]),
    default=RingModel.SEMI_HONEST.value,
    show_default=True,
    help="what the server may do",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON and nothing else")
def parameters(
    *,
    clients: int,
    corrupt: float,
    dropouts: float,
    sigma: int,
    eta: int,
    steps: int,
    threat_model: str,
    as_json: bool,
) -> None:
    """Print the degree k and the threshold t of a sparse graph (k-regular ring, SecAgg+)."""
    if threat_model == _MALICIOUS:
        raise UserError(
            "no k-regular ring is safe against a malicious server, since it chooses who drops out; "
            "use the complete graph"
        )
    try:
        found = ring_parameters(
            clients,
            corrupt=corrupt,
            dropouts=dropouts,
            sigma=sigma,
            eta=eta,
            model=RingModel(threat_model),
            steps=steps,
        )
    except ConfigError as error:
        raise UserError(str(error)) from None
    if as_json:
        asked = {"clients": clients, "sigma": sigma, "eta": eta, "steps": steps}
        json.dump(asked | {"threat_model": threat_model} | _figures(found), sys.stdout)
        click.echo()
    else:
        click.echo(_text(clients, found))


def _figures(found: RingParameters) -> dict[str, object]:
    figures = asdict(found)
    probabilities = {
        name.removeprefix("log2_"): 2.0 ** figures.pop(name)
        for name in ("log2_exposed", "log2_split", "log2_stuck")
    }
    return figures | {"failure_probabilities": probabilities, "note": NOTE}


def _text(clients: int, found: RingParameters) -> str:
    lines = [
        f"k = {found.k} neighbours, t = {found.t} shares rebuild a secret",
        f"counted: {found.corrupt} corrupt, {found.dropouts} dropping out of {clients}",
        "probability that",
        f"  some honest client's neighbours can open its input  {_power(found.log2_exposed)}",
        f"  the honest clients fall apart into several sums     {_power(found.log2_split)}",
        f"  some client has too few live neighbours             {_power(found.log2_stuck)}",
        NOTE,
    ]
    if clients <= _COMPLETE_UP_TO:
        lines.append("with so few clients the complete graph costs little and needs no such bounds")
    return "\n".join(lines)


def _power(log2: float) -> str:
    """Return an upper bound as a power of two; -inf means that no failure is possible."""
    return f"<= 2^{log2:.1f}" if log2 > -float("inf") else "0"
