"""`codream-secure protocol`: compute figures of the masking protocol without a federation."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import click

from codream_secure.aggregation.graph import COMPLETE_UP_TO
from codream_secure.cli.help import Group
from codream_secure.errors import UserError
from protocols.errors import ConfigError
from protocols.graph_parameters import (
    ChosenParameters,
    RingModel,
    RingParameters,
    chosen_parameters,
    ring_parameters,
)

_Found = RingParameters | ChosenParameters
_MALICIOUS = "malicious"


_EXAMPLES = """\b
Examples:
  codream-secure protocol parameters --clients 1000 --corrupt 0.1 --dropouts 0.1
  codream-secure protocol parameters --clients 1000 --threat-model malicious --json
"""


@click.group(cls=Group)
def protocol() -> None:
    """Compute figures of the masking protocol."""


@protocol.command(epilog=_EXAMPLES)
@click.option("--clients", type=int, required=True, help="number of clients, 3 to 16384")
@click.option(
    "--corrupt",
    type=float,
    default=0.05,
    show_default=True,
    help="fraction that may collude, 0 to 1; a third has no sparse graph",
)
@click.option(
    "--dropouts",
    type=float,
    default=0.05,
    show_default=True,
    help="fraction that may drop out, 0 to 1",
)
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
    """Print degree k and threshold t of the sparse graph of a threat model.

    It is the ring (SecAgg+), and against a malicious server the graph that clients choose
    themselves.
    """
    make: Callable[..., _Found] = chosen_parameters
    if threat_model != _MALICIOUS:
        make = partial(ring_parameters, model=RingModel(threat_model))
    try:
        found = make(clients, corrupt=corrupt, dropouts=dropouts, sigma=sigma, eta=eta, steps=steps)
    except ConfigError as error:
        raise UserError(str(error)) from None
    if as_json:
        told = {"clients": clients, "sigma": sigma, "eta": eta, "steps": steps}
        json.dump(told | {"threat_model": threat_model} | _figures(found), sys.stdout)
        click.echo()
    else:
        click.echo(_text(clients, found))


def _graph(found: _Found) -> str:
    return "ring" if isinstance(found, RingParameters) else "chosen"


def _figures(found: _Found) -> dict[str, object]:
    figures = asdict(found)
    logs = [name for name in figures if name.startswith("log2_")]
    chances = {name.removeprefix("log2_"): 2.0 ** figures.pop(name) for name in logs}
    return figures | {"graph": _graph(found), "failure_probabilities": chances}


def _text(clients: int, found: _Found) -> str:
    if isinstance(found, RingParameters):
        first = f"k = {found.k} neighbours, t = {found.t} shares rebuild a secret"
        chances = {
            "some honest client's neighbours can open its input": found.log2_exposed,
            "the honest clients fall apart into several sums": found.log2_split,
            "some client has too few live neighbours": found.log2_stuck,
        }
    else:
        first = f"k = {found.k} clients that each chooses, t = {found.t} of them rebuild a secret"
        chances = {
            "an input is opened, or fewer than half of the honest are summed": found.log2_split,
            "some client has too few live holders of its shares": found.log2_stuck,
            "all corrupt clients choose the same one, which is then left out": found.log2_flooded,
        }
    lines = [
        first,
        f"counted: {found.corrupt} corrupt, {found.dropouts} dropping out of {clients}",
        "probability that",
        *(f"  {what:65}{_power(log2)}" for what, log2 in chances.items()),
        f"codream-secure simulate --graph {_graph(found)} runs on such a graph",
    ]
    if clients <= COMPLETE_UP_TO:
        lines.append("with so few clients the complete graph costs little and needs no such bounds")
    return "\n".join(lines)


def _power(log2: float) -> str:
    """Return an upper bound as a power of two; -inf means that no failure is possible."""
    return f"<= 2^{log2:.1f}" if log2 > -float("inf") else "0"
