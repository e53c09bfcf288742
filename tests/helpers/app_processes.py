"""An app of one's own over a SuperLink and SuperNodes as real processes on 127.0.0.1."""

import json
import shutil
import sys
import time

from codream_secure.flower.operations.local import Local

QUICK = """#!{python}
import time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.2))
from flwr.supernode.cli import flower_supernode
flower_supernode()
"""


def restart_node(running, site):
    """Start a SuperNode again and wait until the SuperLink knows it.

    Until the SuperLink has missed its heartbeats, for a minute, it lets no node with the same
    key in, and the SuperNode ends with exit code 305: whoever watches over it tries again.
    """
    name, log = f"node-{site}", running.out / f"node-{site}.log"
    before = log.read_text(errors="replace").count("SuperNode ID:")
    running.start_node(site)
    while log.read_text(errors="replace").count("SuperNode ID:") == before:
        assert time.monotonic() < running.until, f"{name} was not let in again"
        if running.processes[name].poll() is not None:
            running.kill(name)  # what it started goes on without it
            time.sleep(10)
            running.start_node(site)
        time.sleep(0.2)


class QuickLocal(Local):
    """`Local` with SuperNodes that look for messages five times a second, not every 3 seconds."""

    def _spawn(self, name, program, *arguments):
        if program == "flower-supernode":
            program = str(self._quick_supernode())
        super()._spawn(name, program, *arguments)

    def _quick_supernode(self):
        path = self.out / "quick-supernode"
        if not path.exists():
            path.write_text(QUICK.format(python=sys.executable))
            path.chmod(0o700)
        return path


class App(QuickLocal):
    """Like `Local`, with an app folder instead of the CoDream run.

    Args:
        source: the app folder; it is copied.
        out: new folder.
        components: (serverapp, clientapp), to run others than its pyproject names.
        node: by client, more words of its node configuration.
        superlink: more options of the SuperLink.
        proxies: by client, what its SuperNode talks to instead of the SuperLink.
    """

    def __init__(
        self, source, out, *, clients=3, components=None, settings=None, node=None,
        superlink=(), proxies=None, malicious=False, insecure=False, timeout=600.0,
    ):  # fmt: skip
        super().__init__(
            clients=clients, rounds=1, dream_steps=1, dataset="digits", models="linear",
            threat_model="malicious" if malicious else "semi-honest", more={},
            insecure=insecure, timeout=timeout, out=out,
        )  # fmt: skip
        self._source, self._components = source, components
        self._settings = settings or {}
        self._node, self._superlink, self._proxies = node or {}, list(superlink), proxies or {}

    def _write_app(self):
        app = self.out / "app"
        shutil.copytree(self._source, app, ignore=shutil.ignore_patterns("__pycache__"))
        if self._components:
            path = app / "pyproject.toml"
            lines = path.read_text().splitlines()
            new = dict(zip(("serverapp", "clientapp"), self._components, strict=True))
            lines = [
                f'{key} = "{new[key]}"' if (key := line.split(" = ")[0]) in new else line
                for line in lines
            ]
            path.write_text("\n".join(lines) + "\n")

    def _node_config(self, client):
        words = f'client={client} state="{self.out}/site-{client}"'
        if self._malicious:
            words += f' identity="{self.out}/keys/{client}.private" roster="{self.out}/roster.json"'
        return f"{words} {self._node.get(client, '')}".strip()

    def _port_for(self, client):
        return self._proxies[client].port if client in self._proxies else self._port

    def start_superlink(self):
        """Start the SuperLink again, on its port."""
        self._start_superlink()

    def _start_superlink(self):
        super()._start_superlink()
        for proxy in self._proxies.values():
            proxy.target = self._port

    def _superlink_options(self):
        return self._superlink

    def begin(self, **more):
        """Start the app; ``wait`` for it later."""
        settings = self._settings | more
        config = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        arguments = ["flwr", "run", str(self.out / "app"), "here", "--stream"]
        self._spawn("run", *arguments, *(["--run-config", config] if config else []))

    def wait(self, done):
        """Wait until ``done()`` is true; fail if the app ends first, or the time is up."""
        process, log = self.processes["run"], self.out / "run.log"
        while not done():
            text = log.read_text(errors="replace") if log.exists() else ""
            assert not self._failed(log), text[-3000:]
            assert process.poll() is None or done(), text[-3000:]
            assert time.monotonic() < self.until, "the time is over\n" + text[-3000:]
            time.sleep(0.2)

    def log(self, name):
        return (self.out / f"{name}.log").read_text(errors="replace")
