"""Runs a SuperLink and SuperNodes as real processes on this machine."""

import contextlib
import importlib.resources
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from codream_secure.config.early import check_options
from codream_secure.errors import UserError
from codream_secure.flower.operations.credentials import make_certificates, make_keys, write_roster
from codream_secure.flower.operations.processes import (
    HOST,
    find_program,
    free_port,
    listens,
    processes_of,
    search_path,
    send_signal,
)
from codream_secure.storage.files import replace

_APP = "app.toml"
_STARTS, _STOPS = 90.0, 10.0
_SERVER = "flwr-serverapp"


class Local:
    """The processes of one run; all of them end when the context ends.

    Args:
        clients: number of SuperNodes.
        rounds, dream_steps, dataset, models, threat_model: options of the run.
        more: other options of the run, as text.
        sites: for each site what it brings, as in ``--node-config``; empty: each has its part of
            the run's dataset.
        insecure: run without TLS and without keys of nodes.
        timeout: seconds for everything.
        out: new folder for logs, sites' folders, keys and results.
        tell: receives a line for whatever is waited for, and for every round.

    Raises:
        UserError: Flower is not installed, the folder exists, or the SuperLink did not start.
    """

    def __init__(
        self,
        *,
        clients: int,
        rounds: int,
        dream_steps: int,
        dataset: str,
        models: str,
        threat_model: str,
        more: Mapping[str, str],
        sites: Sequence[str] = (),
        insecure: bool,
        timeout: float,
        out: Path,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        if shutil.which("flower-superlink", path=search_path()) is None:
            raise UserError("Flower is not installed: pip install 'codream-secure[flower]'")
        if out.exists():
            raise UserError(f"{out} is there already; use another --out")
        if sites and len(sites) != clients:
            raise UserError(f"{len(sites)} times --site for {clients} sites: one each, or none")
        self.out, self._tell = out.resolve(), tell
        self._sites, self._runs, self._port = tuple(sites), 0, 0
        self._clients, self._insecure = clients, insecure
        self._dataset, self._malicious = dataset, threat_model == "malicious"
        self.until = time.monotonic() + timeout
        self._settings: dict[str, Any] = {
            "clients": clients,
            "rounds": rounds,
            "dream-steps": dream_steps,
            "dataset": dataset,
            "models": models,
            "threat-model": threat_model,
            "seed": 0,
            **{name.replace("_", "-"): _value(text) for name, text in more.items()},
            "start-timeout": 120,
            "reply-timeout": 300,
            "out": str(self.out / "run"),
            "resume": False,
        }
        check_options(self._settings)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, *, resume: bool = False) -> dict[str, Any]:
        """Run the app to its end; return its summary.

        Args:
            resume: resume the interrupted run.

        Raises:
            UserError: it failed, or took too long; the message names the log.
        """
        self._runs += 1
        name = "run" if self._runs == 1 else f"run-{self._runs}"
        more = ("--run-config", "resume=true") if resume else ()
        self._spawn(name, "flwr", "run", str(self.out / "app"), "here", "--stream", *more)
        process, log = self.processes[name], self.out / f"{name}.log"
        summary = self.out / "run" / "summary.json"
        self._tell(f"waiting for {self._clients} sites to connect and train; {log} has details")
        told = 0
        while process.poll() is None and time.monotonic() < self.until:
            told = self._tell_rounds(summary, told)
            if _finished(summary, self._settings["rounds"]):
                break
            if self._failed(log):
                break
            time.sleep(0.5)
        self._tell_rounds(summary, told)
        if not _finished(summary, self._settings["rounds"]):
            raise UserError(f"the run did not come to its end: see {log}")
        return dict(json.loads(summary.read_text(encoding="utf-8")))

    def _tell_rounds(self, summary: Path, told: int) -> int:
        """Tell of rounds that were finished; return how many there are."""
        done = max(told, _rounds(summary))
        for number in range(told + 1, done + 1):
            self._tell(f"round {number} of {self._settings['rounds']} is finished")
        return done

    def start_node(self, client: int) -> None:
        """Start or restart a SuperNode."""
        security = ["--insecure"]
        if not self._insecure:
            tls, key = self._certificate(client), self.out / "keys" / f"{client}.node"
            security = ["--root-certificates", str(tls), "--auth-supernode-private-key", str(key)]
        self._spawn(
            f"node-{client}",
            "flower-supernode",
            *security,
            "--superlink",
            f"{HOST}:{self._port_for(client)}",
            "--host",
            HOST,
            "--port",
            str(free_port()),
            "--node-config",
            self._node_config(client),
        )

    def _port_for(self, client: int) -> int:  # noqa: ARG002 - a subclass may use a proxy
        """Return the port on which a SuperNode reaches the SuperLink."""
        return self._port

    def _certificate(self, client: int) -> Path:  # noqa: ARG002 - a subclass may give one a wrong certificate
        return self.out / "tls" / "ca.pem"

    def _node_config(self, client: int) -> str:
        site = f'client={client} state="{self.out}/site-{client}/state" '
        site += self._sites[client] if self._sites else f'data="{self._dataset}" whole=false'
        if self._malicious:
            keys = self.out / "keys"
            site += f' identity="{keys}/{client}.private" roster="{self.out}/roster.json"'
        return site

    def kill(self, name: str) -> None:
        """Kill a process and its children at once, as a power cut would."""
        process = self.processes.pop(name)
        send_signal(process, signal.SIGKILL)
        process.wait()

    def kill_server(self) -> None:
        """Kill the ServerApp's process at once.

        Raises:
            UserError: no ServerApp is running.
        """
        found = [pid for pid, words in processes_of(self.out / "flwr") if _SERVER in words]
        if not found:
            raise UserError("no ServerApp is running")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Stop every process of the run, and wait until it has ended."""
        for process in self.processes.values():
            send_signal(process, signal.SIGTERM)
        until = time.monotonic() + _STOPS
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
            send_signal(process, signal.SIGKILL)
            process.wait()
        self.processes.clear()

    def _start(self) -> None:
        try:
            self.out.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot make --out {self.out}: {error.strerror}") from None
        self._tell(f"making keys of {self._clients} sites, and starting a SuperLink")
        for client in range(self._clients):
            make_keys(client, self.out / "keys")
        public = sorted((self.out / "keys").glob("*.public"))
        write_roster(public, self.out / "roster.json")
        if self._malicious:
            self._settings["roster"] = str(self.out / "roster.json")
        self._port = free_port()
        self._write_app()
        self._write_connection()
        self._start_superlink()
        if not self._insecure:
            for client in range(self._clients):
                self._register(client)
        self._tell(f"starting {self._clients} sites")
        for client in range(self._clients):
            self.start_node(client)

    def _write_app(self) -> None:
        """Write the app folder from the template and the run's settings."""
        app = self.out / "app"
        app.mkdir()
        template = importlib.resources.files("codream_secure.flower").joinpath(_APP)
        lines = [f"{name} = {json.dumps(value)}" for name, value in self._settings.items()]
        text = template.read_text(encoding="utf-8") + "\n".join(lines) + "\n"
        replace(app / "pyproject.toml", text)

    def _write_connection(self) -> None:
        """Write Flower's own configuration, which says where the SuperLink is."""
        home = self.out / "flwr"
        home.mkdir()
        connection = (
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{HOST}:{self._port}"\n'
        )
        if self._insecure:
            connection += "insecure = true\n"
        else:
            make_certificates([HOST, "localhost"], self.out / "tls")
            connection += f'root-certificates = "{self.out}/tls/ca.pem"\n'
        replace(home / "config.toml", connection)

    def _start_superlink(self) -> None:
        security = ["--insecure"]
        if not self._insecure:
            tls = self.out / "tls"
            security = [
                "--ssl-ca-certfile",
                str(tls / "ca.pem"),
                "--ssl-certfile",
                str(tls / "server.pem"),
                "--ssl-keyfile",
                str(tls / "server.key"),
                "--enable-supernode-auth",
            ]
        self._spawn(
            "superlink",
            "flower-superlink",
            *security,
            "--host",
            HOST,
            "--port",
            str(self._port),
            "--disable-runtime-dependency-installation",
            *self._superlink_options(),
        )
        until = time.monotonic() + _STARTS
        while not listens(self._port):
            if time.monotonic() > until or self.processes["superlink"].poll() is not None:
                raise UserError(f"the SuperLink did not start: see {self.out / 'superlink.log'}")
            time.sleep(0.2)

    def _superlink_options(self) -> list[str]:
        return []

    def _register(self, client: int) -> None:
        key = self.out / "keys" / f"{client}.node.pub"
        command = [find_program("flwr"), "supernode", "register", str(key), "here"]
        done = subprocess.run(  # noqa: S603 - our own words
            command, env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"site {client} could not be registered: {done.stdout}{done.stderr}")

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        log: IO[bytes]
        with (self.out / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603 - our own words
                [find_program(program), *arguments],
                # Sites name paths and modules relative to the current folder.
                cwd=Path.cwd(),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # In a process group of its own, so that a signal reaches its children too.
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": search_path(),
            "FLWR_HOME": str(self.out / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    @staticmethod
    def _failed(log: Path) -> bool:
        try:
            text = log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        return "raised an exception" in text or "exited with errors" in text


def _value(text: str) -> int | float | str | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _finished(summary: Path, rounds: int) -> bool:
    return _rounds(summary) >= rounds


def _rounds(summary: Path) -> int:
    """Return how many rounds a server's summary tells of; 0 while there is none."""
    try:
        return len(json.loads(summary.read_text(encoding="utf-8"))["rounds"])
    except (OSError, ValueError, KeyError):
        return 0
