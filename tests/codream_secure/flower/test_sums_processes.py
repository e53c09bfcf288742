"""Sums alone over Flower's own processes on 127.0.0.1, with TLS and node keys: faults and growth.

`make test` runs the short one; `make integration` all. Every test prints its time limit, and ends
its processes by their ids.
"""

import datetime as dt
import json
import os
from pathlib import Path

import numpy as np
import pytest
from app_processes import App, restart_node
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from stalling_proxy import StallingProxy
from sums_app.sums_app import digest, vector

from codream_secure.flower.operations.credentials import make_keys
from codream_secure.sites.wire import VERSION

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

SOURCE = Path(__file__).parent / "sums_app"
LENGTH = 1000


class Sums(App):
    """The app of sums; rows of results by step, and files to stop clients and steps."""

    def __init__(self, out, *, clients, steps, settings=None, node=None, timeout=1200.0, **options):
        wanted = {"clients": clients, "steps": steps, "length": LENGTH, "out": str(out / "rows")}
        if options.get("malicious"):
            wanted["roster"] = str(out / "roster.json")
        words = {c: f'stop="{out}/stop-{c}" {(node or {}).get(c, "")}' for c in range(clients)}
        settings = wanted | {"gate": str(out / "gate")} | (settings or {})
        super().__init__(
            SOURCE, out, clients=clients, settings=settings, node=words, timeout=timeout, **options
        )
        print(f"time limit: {timeout:.0f} s")

    def _write_app(self):
        super()._write_app()
        # Sites with keys allow rejoining only if they say so.
        (self.out / "policy.toml").write_text(f"rejoin = {str(self._malicious).lower()}\n")

    @property
    def rows(self):
        path = self.out / "rows"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def open(self, step):
        """Let steps up to this one begin."""
        part = self.out / "gate.part"
        part.write_text(str(step))
        part.replace(self.out / "gate")

    def wait_for_rows(self, count):
        self.wait(lambda: len(self.rows) >= count)
        return self.rows

    def kill_at(self, site, where):
        """Kill a site's SuperNode, with all that it started, when it comes to a message."""
        stop, reached = self.out / f"stop-{site}", self.out / f"stop-{site}.reached"
        stop.write_text(where)
        self.wait(reached.exists)
        assert reached.read_text() == where
        self.kill(f"node-{site}")
        stop.unlink()
        reached.unlink()


def check(row, survivors, length=LENGTH):
    """The sum is exactly that of these sites' vectors."""
    assert row["survivors"] == survivors, row
    total = np.sum([vector(s, row["step"], length).astype(np.uint64) for s in survivors], axis=0)
    assert row["digest"] == digest(total)


def test_a_short_sum_over_tls_is_exact(tmp_path):
    # Flower starts a process for every message, which takes seconds: a sum has few messages.
    with Sums(tmp_path / "run", clients=3, steps=1, settings={"gate": ""}) as app:
        app.begin()
        check(app.wait_for_rows(1)[0], [0, 1, 2])


# Whose input is in the sum when it dies there.
STAYS = {"Confirm", "Unmask"}


@pytest.mark.parametrize(
    ("malicious", "kills"),
    [
        (False, ["Advertise", "Share", "Ask", "after Ask", "Unmask"]),
        (True, ["Share", "Ask", "Confirm", "Unmask"]),
    ],
    ids=["semi-honest", "malicious"],
)
def test_a_node_is_killed_before_each_round_in_turn(tmp_path, malicious, kills):
    """One site a step; the one of the step before is back and in the sum."""
    # A dead node is reported by the SuperLink after a minute: waiting longer costs nothing.
    settings = {"key-steps": 1, "reply-timeout": 180}
    with Sums(
        tmp_path / "run", clients=4, steps=len(kills) + 1, settings=settings, malicious=malicious,
        timeout=1500.0,
    ) as app:  # fmt: skip
        app.begin()
        everybody = list(range(4))
        for step, where in enumerate(kills):
            site = step % 4
            app.open(step)
            app.kill_at(site, where)
            restart_node(app, site)
            row = app.wait_for_rows(step + 1)[step]
            check(row, everybody if where in STAYS else [c for c in everybody if c != site])
        app.open(len(kills))
        check(app.wait_for_rows(len(kills) + 1)[-1], everybody)
        assert "Traceback" not in app.log("run")


def test_a_node_is_killed_during_its_upload(tmp_path):
    """Below the threshold the step is aborted cleanly; the next one has all in it."""
    length = 400_000  # some 900 kB a site
    settings = {"length": length, "reply-timeout": 180, "key-steps": 4}
    with StallingProxy() as proxy, Sums(
        tmp_path / "run", clients=3, steps=3, settings=settings, proxies={2: proxy}
    ) as app:  # fmt: skip
        app.begin()
        app.open(0)
        check(app.wait_for_rows(1)[0], [0, 1, 2], length)
        proxy.arm(300_000)
        app.open(1)
        app.wait(proxy.stalled.is_set)
        app.kill("node-2")
        proxy.disarm()
        restart_node(app, 2)
        row = app.wait_for_rows(2)[1]
        assert (row["survivors"], row["digest"]) == ([], "")
        assert "masked_input: 2 clients left, 3 needed" in row["aborted"]
        app.open(2)
        check(app.wait_for_rows(3)[2], [0, 1, 2], length)


def expire(ca, key, out):
    """Write the authority's certificate as it would be had it expired."""
    old = x509.load_pem_x509_certificate(ca.read_bytes())
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now - dt.timedelta(days=1))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    made = builder.sign(private, hashes.SHA256())
    out.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return out


class Mistaken(Sums):
    """Site 3 has an authority's certificate that has expired."""

    def _certificate(self, client):
        tls = self.out / "tls"
        if client != 3:
            return super()._certificate(client)
        return expire(tls / "ca.pem", tls / "ca.key", self.out / "expired.pem")


def test_an_expired_certificate_and_an_old_version_are_named_and_the_rest_goes_on(tmp_path):
    settings = {"threshold": 3, "reply-timeout": 180, "start-timeout": 20, "gate": ""}
    with Mistaken(
        tmp_path / "run", clients=5, steps=2, settings=settings, node={4: "version=0"}
    ) as app:
        app.begin()
        rows = app.wait_for_rows(2)
        for row in rows:
            check(row, [0, 1, 2])
        told = f"the server speaks version {VERSION} and this site 0"
        assert told in rows[1]["refused"]["4"]
        app.wait(lambda: "certificate has expired" in app.log("node-3"))
        assert "site 4 refused: RequestRefused" in app.log("run")
        assert "site 3 did not answer" in app.log("run")


def test_a_wrong_signing_key_is_named_and_the_rest_goes_on(tmp_path):
    settings = {"reply-timeout": 180, "gate": ""}
    run = tmp_path / "run"
    with Sums(run, clients=4, steps=2, settings=settings, malicious=True) as app:
        make_keys(3, tmp_path / "others")
        other = (tmp_path / "others" / "3.private").read_text()
        (run / "keys" / "3.private").write_text(other)
        app.begin()
        for row in app.wait_for_rows(2):
            check(row, [0, 1, 2])
        assert "site 3 cannot take part: its signing key is not the one" in app.log("run")


def test_a_superlink_that_is_restarted_has_forgotten_the_run_but_not_the_nodes(tmp_path):
    """With a database its nodes go on by themselves; the run is begun again, as a new session."""
    database = tmp_path / "superlink.db"
    with Sums(
        tmp_path / "run", clients=3, steps=2, superlink=("--database", str(database))
    ) as app:  # fmt: skip
        app.begin()
        app.open(0)
        check(app.wait_for_rows(1)[0], [0, 1, 2])
        nodes = {name: app.processes[name].pid for name in ("node-0", "node-1", "node-2")}
        app.kill("superlink")
        app.kill("run")
        app.start_superlink()
        app.open(1)
        app.begin()
        rows = app.wait_for_rows(3)
        assert [row["step"] for row in rows] == [0, 0, 1]
        for row in rows[1:]:
            check(row, [0, 1, 2])
        assert all(app.processes[name].pid == pid for name, pid in nodes.items())
        assert all(app.processes[name].poll() is None for name in nodes)


# Two hundred steps ------------------------------------------------------------------------------

STEPS = int(os.environ.get("CODREAM_STEPS", "200"))
EVERY = max(1, STEPS // 10)


def memory(root):
    """Resident bytes of a process and all below it, by the name of its programs."""
    found, parents, rss, names = {}, {}, {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_bytes().split(b"\0")
            rss[int(entry.name)] = int((entry / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        parents[int(entry.name)] = int(fields[1])
        names[int(entry.name)] = Path(os.fsdecode(words[1])).name if len(words) > 1 else "?"
    for process, pages in rss.items():
        above = process
        while above not in (0, root):
            above = parents.get(above, 0)
        if above == root:
            size = pages * os.sysconf("SC_PAGE_SIZE")
            found[names[process]] = found.get(names[process], 0) + size
    return found


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_two_hundred_steps_grow_nothing_but_what_is_documented(tmp_path):
    """docs/deployment.md says what grows: logs, by lines; nothing else."""
    limit = 9.0 * STEPS + 600
    measured = []
    with Sums(
        tmp_path / "run",
        clients=3,
        steps=STEPS,
        timeout=limit,
        settings={"key-steps": 50, "reply-timeout": 180},
    ) as app:
        app.begin()
        for count in range(EVERY, STEPS + 1, EVERY):
            app.open(count - 1)
            for row in app.wait_for_rows(count)[-EVERY:]:
                check(row, [0, 1, 2])
            superlink = memory(app.processes["superlink"].pid)
            measured.append(
                {
                    "steps": count,
                    "superlink": superlink.get("flower-superlink", 0),
                    "serverapp": superlink.get("flwr-serverapp", 0),
                    "node": memory(app.processes["node-0"].pid).get("quick-supernode", 0),
                    "site": bytes_in(app.out / "site-0"),
                    "logs": sum(path.stat().st_size for path in app.out.glob("*.log")),
                    "flower": bytes_in(app.out / "flwr"),
                    "seconds": round(sum(row["seconds"] for row in app.rows[-EVERY:]), 1),
                }
            )
            print(json.dumps(measured[-1]))
    first, last = measured[0], measured[-1]
    # Keys of 50 steps at first, of none at the end of a batch: a site's folder does not grow.
    assert last["site"] <= max(row["site"] for row in measured[:3])
    assert last["flower"] == first["flower"]
    for program in ("superlink", "serverapp", "node"):
        assert first[program] > 0
        per_step = (last[program] - first[program]) / (last["steps"] - first["steps"])
        assert per_step < 100_000, f"{program} grows by {per_step:.0f} bytes a step: {measured}"
