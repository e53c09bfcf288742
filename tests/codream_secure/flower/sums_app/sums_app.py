"""Steps of sums of integer vectors over sites; a file can stop a client at a given message.

A client's node configuration may have:

- ``stop``: a file. While it is there, the client stops at the message that it names, `Ask` for
  instance, or after having answered it (`after Ask`), writes the file with ``.reached`` at the
  end of its name, and waits to be killed.
- ``version``: which version of the protocol it speaks.
- ``torch``: import PyTorch, to measure what that costs.
"""

import hashlib
import json
import logging
import time
from pathlib import Path

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from codream_secure.flower.carrier import ACTION, Carrier, body_of, content_with
from codream_secure.flower.node_config import read_roster, site_settings
from codream_secure.sites import session, wire
from codream_secure.sites.site import Site
from codream_secure.sites.summand import Contribution
from codream_secure.sites.sums import SumServer
from protocols.errors import NotEnoughSurvivors
from protocols.params import Section, Task

KIND, SECTION = "vector", "vector"
MAXIMUM = (1 << 16) - 1
_PATIENCE, _GATE = 300.0, 900.0

log = logging.getLogger("flwr")
server = ServerApp()
client = ClientApp()


def vector(site, step, length):
    """What a site adds in a step."""
    draw = np.random.default_rng([site, step])
    return draw.integers(0, MAXIMUM + 1, length, dtype=np.uint32)


def digest(total):
    """Of a sum, as the server writes it down."""
    return hashlib.sha256(np.asarray(total, "<u4").tobytes()).hexdigest()


def sections(length):
    return (Section(name=SECTION, length=length, maximum=MAXIMUM, clip=1.0),)


@server.main()
def main(grid, context):
    config = context.run_config
    roster = read_roster(Path(config["roster"])) if config["roster"] else ()
    carrier = Carrier(grid, float(config["reply-timeout"]))
    sums = SumServer(
        carrier,
        clients=config["clients"],
        threshold=config["threshold"] or None,
        threat_model="malicious" if roster else "semi-honest",
        identities=roster,
        rejoin=bool(roster),
        key_steps=config["key-steps"],
        tell=lambda line: log.warning("%s", line),
    )
    carrier.wait_for(config["clients"], float(config["start-timeout"]))
    with Path(config["out"]).open("a", encoding="utf-8") as out:
        for _ in range(config["steps"]):
            wait_at(config["gate"], sums.step)
            row = take(sums, config["length"])
            out.write(json.dumps(row) + "\n")
            out.flush()
            log.info("%s", row)


def wait_at(gate, step):
    """Wait until the file says that this step may begin, if there is one."""
    until = time.monotonic() + _GATE
    while gate and time.monotonic() < until:
        if Path(gate).exists() and int(Path(gate).read_text() or -1) >= step:
            return
        time.sleep(0.1)


def take(sums, length):
    """Take a step; return what is written down of it."""
    began, step, trips = time.monotonic(), sums.step, sums.sites.traffic.round_trips
    row = {"step": step, "survivors": [], "digest": ""}
    try:
        finished = sums.sum(
            KIND, sections(length), lambda step: json.dumps([step, length]).encode()
        )
        row |= {"survivors": finished.survivors, "digest": digest(finished.totals[SECTION])}
    except NotEnoughSurvivors as error:
        row |= {"aborted": str(error)}
    return row | {
        "seconds": round(time.monotonic() - began, 2),
        "round_trips": sums.sites.traffic.round_trips - trips,
        "refused": {str(site): why for site, why in sums.sites.refused.items()},
    }


class Vector:
    """A site's part, from its number and the step's."""

    kinds = (KIND,)

    def __init__(self, site):
        self._site = site

    def content(self, broadcast):
        return b""  # every step is its own

    def task(self, broadcast, step, folder):
        _, length = json.loads(broadcast)
        return Task(
            step=step,
            kind=KIND,
            sections=sections(length),
            broadcast_digest=hashlib.sha256(broadcast).digest(),
        )

    def contribute(self, broadcast, folder):
        step, length = json.loads(broadcast)
        return Contribution({SECTION: vector(self._site, step, length)})


@client.query(ACTION)
def secure(message, context):
    config = context.node_config
    if config.get("torch"):
        import torch  # noqa: F401, PLC0415
    if (version := config.get("version")) is not None:
        session.VERSION = version
    body = body_of(message.content)
    kind = type(wire.decode(body)).__name__
    settings = site_settings(config, learns=False)
    stop_at(config.get("stop"), kind)
    with Site(settings, Vector(settings.client)) as site:
        answer = site.handle_bytes(body)
    stop_at(config.get("stop"), f"after {kind}")
    return Message(content_with(answer), reply_to=message)


def stop_at(name, where):
    """Wait to be killed, if the file says so."""
    if not name or not Path(name).exists() or Path(name).read_text() != where:
        return
    Path(f"{name}.reached").write_text(where)
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        time.sleep(0.1)
