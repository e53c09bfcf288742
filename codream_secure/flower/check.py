"""What can be wrong with a site, found before it takes part."""

import socket
import ssl
from importlib import metadata
from pathlib import Path

from codream_secure.errors import UserError
from codream_secure.flower.node import read_key, read_roster, site_data
from protocols.keys import SigningKey

TESTED = ("1.41",)
_PATIENCE = 10.0
Finding = tuple[str, bool, str]


def check_site(
    *,
    data: str,
    superlink: str | None = None,
    ca: Path | None = None,
    roster_file: Path | None = None,
    identity: Path | None = None,
    client: int | None = None,
) -> list[Finding]:
    """Return what was looked at, whether it is right, and what was found or how to mend it.

    Args:
        data: as in ``--node-config``.
        superlink: host and port.
        ca: certificate of the authority that signed the SuperLink's.
        roster_file: public keys.
        identity: this site's private key.
        client: this site's number.
    """
    found = [_flower(), _data(data)]
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


def _data(name: str) -> Finding:
    try:
        data = site_data(name)
    except UserError as error:
        return "data", False, str(error)
    spec = data.spec
    shape = f"{spec.channels} x {spec.height} x {spec.width}, {spec.classes} classes"
    return "data", True, f"{len(data.y_train)} training images of {shape}"


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
