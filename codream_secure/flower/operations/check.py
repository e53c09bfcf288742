"""Finds mistakes in a site's setup before it takes part in a run."""

import platform
import socket
import ssl
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from codream_secure._version import __version__
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.flower.node_config import SERVER_OPTIONS, read_key, read_roster, site_data
from codream_secure.sites.policy import SitePolicy, path_of
from codream_secure.sites.wire import VERSION
from codream_secure.storage.toml import load_toml
from protocols.primitives.keys import SigningKey

TESTED = ("1.41", "1.42")
_PATIENCE = 10.0
# What was checked, whether it is right, and what was found or how to correct it.
Finding = tuple[str, bool, str]


def check_site(
    *,
    data: str,
    model: str | None = None,
    part: bool = False,
    app: Path | None = None,
    superlink: str | None = None,
    ca: Path | None = None,
    roster_file: Path | None = None,
    identity: Path | None = None,
    client: int | None = None,
    state: Path | None = None,
) -> list[Finding]:
    """Check a site's setup; return for each check its name, whether it passed, and details.

    Args:
        data: as in ``--node-config``.
        model: as in ``--node-config``.
        part: whether the site has its part of the run's dataset, ``whole=false``.
        app: folder of the run's app; relative paths in it start at the current folder.
        superlink: host and port.
        ca: certificate of the authority that signed the SuperLink's certificate.
        roster_file: file of all public keys.
        identity: file of this site's private key.
        client: this site's number.
        state: the site's state folder, whose policy is shown.
    """
    found = [_flower(), _version(), _data(data)]
    if state is not None:
        found.append(_policy(state))
    if model is not None and found[-1][1]:
        found.append(_model(model, site_data(data).spec))
    if app is not None and found[2][1]:
        found += _run(app, data, client, part=part)
    if roster_file is not None or identity is not None:
        found.append(_keys(roster_file, identity, client))
    if superlink is not None:
        found.append(_superlink(superlink, ca))
    return found


def _flower() -> Finding:
    try:
        version = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        return "flower", False, "not installed: pip install 'codream-secure[flower]'"
    tested = version.startswith(TESTED)
    note = "" if tested else f"; tested with {', '.join(TESTED)}"
    return "flower", True, f"{version}{note}"


def _version() -> Finding:
    text = f"codream-secure {__version__}, messages of version {VERSION}"
    return "version", True, f"{text}, Python {platform.python_version()}; the same everywhere?"


def _model(name: str, spec: InputSpec) -> Finding:
    from codream_secure.models.build import build_model  # noqa: PLC0415 - PyTorch is slow

    try:
        model = build_model(name, spec, width=None, norm="batch", seed=0)
    except UserError as error:
        return "model", False, str(error)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return "model", True, f"{name}, {numbers} parameters"


def _run(app: Path, data: str, client: int | None, *, part: bool) -> list[Finding]:
    """Compare a site with the run that an app folder describes."""
    try:
        given = load_toml(app / "pyproject.toml")["tool"]["flwr"]["app"]["config"]
    except (UserError, KeyError, TypeError) as error:
        return [("run", False, f"{app} is no app folder: {error}")]
    try:
        options = {k.replace("-", "_"): v for k, v in given.items() if k not in SERVER_OPTIONS}
        config = resolve(Config.from_options({k: v for k, v in options.items() if v != ""}))
        wanted = site_data(config.data.dataset).spec
    except UserError as error:
        return [("run", False, str(error))]
    found = [_shape(site_data(data).spec, wanted)]
    if not part and config.data.samples_per_client is None:
        text = "data of its own need samples-per-client in the run's configuration"
        found.append(("share", False, f"{text}; or the site has a part: --part"))
    if client is not None and client >= config.data.clients:
        text = f"the run has clients 0 to {config.data.clients - 1}, not {client}"
        found.append(("client", False, text))
    return found


def _shape(own: InputSpec, wanted: InputSpec) -> Finding:
    if replace(own, classes=wanted.classes) != wanted or own.classes > wanted.classes:
        return "shape", False, f"the site's data are {_text(own)}, the run's {_text(wanted)}"
    return "shape", True, "as the run's"


def _text(spec: InputSpec) -> str:
    return f"{spec.channels} x {spec.height} x {spec.width}, {spec.classes} classes"


def _data(name: str) -> Finding:
    try:
        data = site_data(name)
    except UserError as error:
        return "data", False, str(error)
    return "data", True, f"{len(data.y_train)} training images of {_text(data.spec)}"


def _policy(state: Path) -> Finding:
    try:
        policy = SitePolicy.beside(state)
    except UserError as error:
        return "policy", False, str(error)
    where = path_of(state)
    told = str(where) if where.exists() else f"{where} is not there: the defaults"
    return "policy", True, "\n    ".join([told, *policy.lines()])


def _keys(roster: Path | None, identity: Path | None, client: int | None) -> Finding:
    if roster is None or identity is None or client is None:
        return "keys", False, "give --roster, --identity and --client together"
    try:
        keys, own = read_roster(roster), SigningKey.from_private_bytes(read_key(identity))
    except UserError as error:
        return "keys", False, str(error)
    if client >= len(keys):
        return "keys", False, f"the roster has clients 0 to {len(keys) - 1}, not {client}"
    if keys[client] != own.public:
        return "keys", False, f"{identity} is not client {client}'s key in {roster}"
    return "keys", True, f"client {client} of {len(keys)}"


def _superlink(address: str, ca: Path | None) -> Finding:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return "superlink", False, f"{address} is not host:port"
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE) as plain:
            if ca is None:
                return "superlink", True, "reached; TLS was not looked at (--ca)"
            context = ssl.create_default_context(cafile=str(ca))
            with context.wrap_socket(plain, server_hostname=host) as secured:
                return "superlink", True, f"reached, {secured.version()}, certificate is valid"
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason or str(error)
        return "superlink", False, f"TLS: {reason}; see --hosts of deploy certificates"
    except OSError as error:
        return "superlink", False, f"cannot be reached: {error}; is it running, is the port open?"
