"""`codream-secure deploy`: prepare and run a federation over machines with Flower's programs."""

import json
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from codream_secure.cli.exit_codes import EXIT_BAD_INPUT
from codream_secure.cli.help import Group
from codream_secure.cli.options import number as number_option
from codream_secure.config import bounds
from codream_secure.errors import UserError

_ENDS = (signal.SIGTERM, signal.SIGHUP)
_FORGET = (
    "A server can then ask again what this site has answered, and find what one site answered by "
    "subtracting two sums. Forget?"
)
_EXAMPLES = """\b
Examples:
  codream-secure deploy keys --client 0 --out keys
  codream-secure deploy roster keys/*.public --out roster.json
  codream-secure deploy certificates --hosts superlink.example.org,127.0.0.1 --out tls
  codream-secure deploy check --data my-images.npz --superlink superlink.example.org:9092 \\
      --ca tls/ca.pem
  codream-secure deploy local --clients 5
  codream-secure deploy local --clients 3 --dataset public.npz --set samples_per_client=400 \\
      --site 'data="a.npz" model="resnet8"' --site 'data="b.npz"' --site 'data="c.npz"'
"""


@click.group(cls=Group, epilog=_EXAMPLES)
def deploy() -> None:
    """Run over several machines with Flower's SuperLink and SuperNodes."""


@deploy.command()
@number_option("--client", of=bounds.Client, required=True, told="number in the roster")
@click.option("--out", type=Path, default=Path("keys"), show_default=True, help="folder")
def keys(client: int, out: Path) -> None:
    """Make a site's key pair for the malicious model, and its Flower node key.

    Keep CLIENT.private and CLIENT.node at the site. Give CLIENT.public to the person who writes
    the roster, in a way that avoids the server, and CLIENT.node.pub to the owner of the
    SuperLink.
    """
    from codream_secure.flower.operations.credentials import make_keys  # noqa: PLC0415

    for path in make_keys(client, out):
        click.echo(path)


@deploy.command()
@click.argument("public", type=Path, nargs=-1, required=True)
@click.option("--out", type=Path, default=Path("roster.json"), show_default=True)
def roster(public: tuple[Path, ...], out: Path) -> None:
    """Write the roster: the public keys that every site and the server need."""
    from codream_secure.flower.operations.credentials import write_roster  # noqa: PLC0415

    count = write_roster(public, out)
    click.echo(f"{out}: {count} clients; give every site the same file, and compare its digest")


@deploy.command()
@click.option("--hosts", required=True, help="names and addresses of the SuperLink, with commas")
@click.option("--out", type=Path, default=Path("tls"), show_default=True, help="folder")
def certificates(hosts: str, out: Path) -> None:
    """Make a certificate authority and a server certificate, for development.

    In production use certificates of your organisation or of a public authority. The key of this
    authority lies in a file beside its certificates, and nobody can revoke what it signed.
    """
    from codream_secure.flower.operations.credentials import make_certificates  # noqa: PLC0415

    names = [name.strip() for name in hosts.split(",") if name.strip()]
    for path in make_certificates(names, out):
        click.echo(path)


@deploy.command()
@click.option("--data", required=True, help="value of data=... in --node-config")
@click.option("--model", help="value of model=... in --node-config")
@click.option(
    "--part",
    is_flag=True,
    help="--node-config has whole=false: the site takes its part of the run's data",
)
@click.option("--app", type=Path, help="folder of the run's app, to compare the site with")
@click.option("--state", type=Path, help="the site's state folder: prints the policy in force")
@click.option("--superlink", help="host:port that the site will connect to")
@click.option("--ca", type=Path, help="the authority's certificate")
@click.option("--roster", "roster_file", type=Path, help="file of public keys")
@click.option("--identity", type=Path, help="this site's private key")
@number_option("--client", of=bounds.Client, told="this site's number")
@click.option("--json", "as_json", is_flag=True, help="print JSON and nothing else")
def check(*, as_json: bool, **options: object) -> None:
    """Check a site before it takes part: versions, data, model, keys, the SuperLink and its TLS.

    With --app, check also that all of this fits the run.

    Exit code 2: something is wrong; its line says what it is and how to fix it.
    """
    from codream_secure.flower.operations.check import check_site  # noqa: PLC0415

    found = check_site(**options)  # type: ignore[arg-type]
    if as_json:
        click.echo(json.dumps([{"what": w, "holds": h, "told": t} for w, h, t in found]))
    else:
        for what, holds, told in found:
            click.echo(f"{'ok    ' if holds else 'WRONG '} {what}: {told}")
    sys.exit(0 if all(holds for _, holds, _ in found) else EXIT_BAD_INPUT)


@deploy.command()
@click.argument("state", type=Path)
def log(state: Path) -> None:
    """Print what has left a site: its sessions, who asked, what it answered and refused, epsilon.

    STATE is the site's state folder. No process may be using it.
    """
    from codream_secure.sites.site_log import lines  # noqa: PLC0415

    for line in lines(state):
        click.echo(line)


@deploy.command()
@click.argument("state", type=Path)
@click.option("--yes", is_flag=True, help="do not ask")
def forget(*, state: Path, yes: bool) -> None:
    """Let a site answer the requests of earlier sessions again; only its operator may decide this.

    A second run with the same seed repeats its broadcasts and needs this. STATE is the site's
    state folder. The log and what was spent stay.
    """
    from codream_secure.sites.contents import forget as forget_contents  # noqa: PLC0415

    if not yes:
        click.confirm(_FORGET, abort=True)
    click.echo(f"{forget_contents(state)} requests forgotten; they can be asked again")


@deploy.command()
@number_option("--clients", of=bounds.Roster, told="sites", default=5, show_default=True)
@number_option("--rounds", of=bounds.Positive, told="rounds", default=2, show_default=True)
@number_option(
    "--dream-steps", of=bounds.Natural, told="steps a batch", default=2, show_default=True
)
@click.option("--dataset", default="digits", show_default=True)
@click.option("--models", default="mlp", show_default=True)
@click.option(
    "--threat-model", type=click.Choice(["semi-honest", "malicious"]), default="semi-honest"
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="another option of the run"
)
@click.option(
    "--site",
    "sites",
    multiple=True,
    metavar="NODE_CONFIG",
    help="data and model of a site, as in --node-config; one for every site, or none",
)
@click.option("--insecure", is_flag=True, help="without TLS and node keys")
@number_option("--timeout", of=bounds.Seconds, told="in all", default=1800.0, show_default=True)
@click.option(
    "--out", type=Path, default=Path("codream-local"), show_default=True, help="new folder"
)
@click.option("--json", "as_json", is_flag=True, help="print summary.json and nothing else")
def local(*, settings: tuple[str, ...], as_json: bool, **options: object) -> None:
    """Start a SuperLink and SuperNodes on this machine, run, and stop them: a demonstration."""
    from codream_secure.flower.operations.local import Local  # noqa: PLC0415

    # A signal that ends this process must end everything that it started.
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it on purpose
            signal.signal(number, _leave)
    tell = partial(click.echo, err=True)
    with Local(**options, more=_pairs(settings), tell=tell) as running:  # type: ignore[arg-type]
        summary = running.run()
    click.echo(json.dumps(summary) if as_json else _told(summary, running.out))


def _pairs(settings: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write NAME=VALUE")
        found[name] = value
    return found


def _told(summary: Mapping[str, Any], out: Path) -> str:
    """Return what a person reads of a run's summary."""
    lines = []
    for one in summary["rounds"]:
        server = "-" if one["server"] is None else f"{100 * one['server']:.1f} %"
        told = one["sites"]
        sites = "" if told is None else f", sites {100 * told['accuracy']:.1f} %"
        lines.append(
            f"round {one['round']}: server {server}{sites}, {one['learned']} sites learned, "
            f"dreams {one['dreams'][:16]}"
        )
    flower, clients = summary["flower"], summary["config"]["clients"]
    ledger = summary["bytes_per_client"]
    lines.append(
        f"{flower['messages']} messages in {flower['round_trips']} round trips, "
        f"{flower['seconds']:.0f} s of waiting"
    )
    lines.append(
        f"bytes a site: {flower['whole_up'] / clients / 1e3:.1f} kB up and "
        f"{flower['whole_down'] / clients / 1e3:.1f} kB down in Flower's messages, "
        f"{ledger['up'] / 1e3:.1f} and {ledger['down'] / 1e3:.1f} kB of them the protocol's"
    )
    return "\n".join([*lines, f"results in {out}"])


def _leave(number: int, _frame: object) -> None:
    for one in _ENDS:
        signal.signal(one, signal.SIG_IGN)  # a second one must not cut the end short
    raise SystemExit(128 + number)
