"""Reads a SuperNode's configuration: the settings, data and keys of its site."""

import importlib
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from codream_secure.config.bounds import Client, checked
from codream_secure.errors import UserError
from codream_secure.sites.policy import FILE, path_of
from codream_secure.sites.session import SiteSettings
from protocols.params import MAX_CLIENTS
from protocols.primitives.keys import KEY_SIZE, SigningKey

if TYPE_CHECKING:
    from codream_secure.data.datasets import Dataset

# Entries of the run configuration for the ServerApp itself; all others are options of the run.
SERVER_OPTIONS = frozenset(
    {"roster", "reply-timeout", "start-timeout", "out", "resume", "evaluate"}
)
# Entries of older versions, and their place in the site's policy.
_MOVED = {"max-epsilon": "epsilon", "max-delta": "delta", "rejoin": "rejoin"}


def site_settings(
    config: Mapping[str, object], *, node: int = 0, learns: bool = True
) -> SiteSettings:
    """Return a site's settings from its ``--node-config``; `flower.client_app` lists the entries.

    Args:
        config: the node's configuration.
        node: Flower's number of the node, which the site's proof of presence names.
        learns: whether the entry ``data`` is needed; a site of sums alone has no data.

    Raises:
        UserError: an entry is missing, or a file does not hold what it should.
    """
    for name in ("client", "state", *(["data"] if learns else [])):
        if name not in config:
            raise UserError(f"--node-config lacks {name}=...")
    for name, entry in _MOVED.items():
        if name in config:
            raise UserError(
                f"--node-config {name}=... is now {entry} in {FILE} beside the state folder, "
                f"{path_of(Path(str(config['state'])))}"
            )
    identity = None
    if path := config.get("identity"):
        identity = SigningKey.from_private_bytes(read_key(Path(str(path))))
    roster: tuple[bytes, ...] = ()
    if path := config.get("roster"):
        roster = read_roster(Path(str(path)))
    return SiteSettings(
        client=_number("client", config["client"]),
        folder=Path(str(config["state"])),
        load=partial(site_data, str(config.get("data"))),
        model=str(config["model"]) if config.get("model") else None,
        classes=int(str(config["classes"])) if config.get("classes") else None,
        whole=config.get("whole", True) in (True, "true", "True"),
        identity=identity,
        roster=roster,
        node=node,
    )


def _number(name: str, value: object) -> int:
    try:
        return int(checked(int(str(value)), int, Client, f"from 0 to {MAX_CLIENTS - 1}"))
    except ValueError:
        raise UserError(
            f"--node-config {name}={value} must be a whole number from 0 to {MAX_CLIENTS - 1}"
        ) from None


def site_data(name: str) -> "Dataset":
    """Return a site's data.

    Args:
        name: a dataset's name, an .npz file, or ``module:function`` whose module is installed or
            lies in the current folder.

    Raises:
        UserError: nothing of this name can be loaded, or the function returns no `Dataset`.
    """
    from codream_secure.data.datasets import Dataset, load_dataset  # noqa: PLC0415 - slow

    module, colon, function = name.partition(":")
    if not colon or name.endswith(".npz"):
        return load_dataset(name, Path("data"))
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise UserError(f"data={name}: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(found, Dataset):
        raise UserError(f"data={name} returned a {type(found).__name__}, not a Dataset")
    return found


def read_key(path: Path) -> bytes:
    """Return the private signing key in a file, 32 bytes; the file has them in hex.

    Raises:
        UserError: the file holds no signing key.
    """
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        raise UserError(f"{path} holds no signing key; make one: deploy keys") from None
    if len(key) != KEY_SIZE:
        raise UserError(f"{path} holds no signing key; make one: deploy keys")
    return key


def read_roster(path: Path) -> tuple[bytes, ...]:
    """Return the public keys of a roster file, in the order of the clients' numbers.

    Raises:
        UserError: the file holds no roster.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))["clients"]
        keys = tuple(bytes.fromhex(found[str(c)]) for c in range(len(found)))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no roster; make one: deploy keys") from None
    if any(len(key) != KEY_SIZE for key in keys):
        raise UserError(f"{path} is no roster; make one: deploy keys")
    return keys
