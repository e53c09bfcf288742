"""Processes and ports of this machine, as `operations.local` needs them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from codream_secure.errors import UserError

HOST = "127.0.0.1"


def search_path() -> str:
    """Return PATH with the programs of this Python first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def find_program(name: str) -> str:
    """Return the path of one of Flower's programs.

    Raises:
        UserError: it is not installed.
    """
    found = shutil.which(name, path=search_path())
    if found is None:
        raise UserError(f"{name} is not there: pip install 'codream-secure[flower]'")
    return found


def free_port() -> int:
    """Return a port that no process listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Return whether a process accepts connections on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def send_signal(process: "subprocess.Popen[bytes]", what: signal.Signals) -> None:
    """Send a signal to a process and its children; they may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, what)


def processes_of(home: Path) -> Iterator[tuple[int, str]]:
    """Yield (id, command line) of each process whose Flower folder is ``home``."""
    wanted = f"FLWR_HOME={home}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name), (folder / "cmdline").read_text(errors="replace")
        except OSError:
            continue  # it has ended, or belongs to another user
