"""Sites of sums without learning, built anew for every message; what they add has momentum."""

import hashlib
import os

import msgspec
import numpy as np

from codream_secure.sites import wire
from codream_secure.sites.pending import STATE
from codream_secure.sites.policy import FILE
from codream_secure.sites.session import SiteSettings
from codream_secure.sites.site import Site
from codream_secure.sites.summand import Contribution
from codream_secure.sites.sums import SumServer
from protocols.params import Section, Task
from protocols.primitives.keys import SigningKey

LENGTH, KIND = 3, "momentum"
SECTIONS = (Section(name="v", length=LENGTH, maximum=(1 << 20) - 1, clip=1.0),)


def gradient(site, request):
    """What a request asks of one site alone: its secret."""
    digest = hashlib.sha256(bytes([site]) + request).digest()
    return np.frombuffer(digest[: 2 * LENGTH], "<u2").astype(np.uint32)


def moved(velocity, site, request):
    """Half of the old velocity, and the gradient."""
    return velocity // 2 + gradient(site, request)


class Momentum:
    """A `Summand` whose state moves with every answer."""

    kinds = (KIND,)

    def __init__(self, site):
        self.site = site

    def task(self, broadcast, step, folder):
        digest = hashlib.sha256(broadcast).digest()
        return Task(step=step, kind=KIND, sections=SECTIONS, broadcast_digest=digest)

    def content(self, broadcast):
        return broadcast

    def contribute(self, broadcast, folder):
        kept = folder.load(STATE)
        old = np.zeros(LENGTH, np.uint32) if kept is None else np.frombuffer(kept, "<u4")
        new = moved(old, self.site, broadcast)
        return Contribution({"v": new}, state=new.astype("<u4").tobytes())


class SumSites:
    """Sites of one session; a fault is a function of (site, message), as in `machines.Machines`.

    Attributes:
        lie: changes an item of the record before it is added.
        velocity: what each site's state must be, by the record.
    """

    def __init__(self, folder, sites=5, *, malicious=True, rejoin=True, policy="", **server):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(policy or f"rejoin = {str(rejoin).lower()}")
        self.folder, self.fault, self.lie = folder, lambda *_: None, lambda item: item
        self.keys = [SigningKey.from_private_bytes(os.urandom(32)) for _ in range(sites)]
        self.roster = tuple(k.public for k in self.keys) if malicious else ()
        self.messages, self.told = [], []
        self.velocity = {site: np.zeros(LENGTH, np.uint32) for site in range(sites)}
        self.server = SumServer(
            self.carry,
            clients=sites,
            threat_model="malicious" if malicious else "semi-honest",
            identities=self.roster,
            rejoin=rejoin and malicious,
            tell=self.told.append,
            **server,
        )
        record = self.server._sums.record
        add = type(record).add
        self.record = record
        self.server._sums.record = _Lying(self, record, add)

    def settings(self, site):
        return SiteSettings(
            client=site,
            folder=self.folder / f"site-{site}",
            load=lambda: None,
            identity=self.keys[site] if self.roster else None,
            roster=self.roster,
        )

    def answer(self, site, message):
        with Site(self.settings(site), Momentum(site)) as running:
            return running.handle(message)

    def carry(self, messages):
        answers = {}
        for site, data in messages.items():
            message = wire.decode(data)
            self.messages.append((site, message))
            fault = self.fault(site, message)
            if fault == "before":
                continue
            answer = self.answer(site, message)
            if fault != "after":
                answers[site] = wire.encode(answer)
        return answers

    def sum(self, request):
        """Run a step; return its totals and survivors, and move the velocities by the record."""
        found = self.server.sum(KIND, SECTIONS, lambda _: request)
        for site in found.survivors:
            self.velocity[site] = moved(self.velocity[site], site, request)
        return found.totals["v"], found.survivors

    def expected(self, survivors):
        return sum(self.velocity[site].astype(np.int64) for site in survivors)


class _Lying:
    """The server's record, whose items the test changes before they are added."""

    def __init__(self, there, record, add):
        self._there, self._record, self._add = there, record, add

    def __getattr__(self, name):
        return getattr(self._record, name)

    def add(self, item):
        self._add(self._record, self._there.lie(item))


def entry(item, **changed):
    """Return an item of the record with another entry."""
    return msgspec.structs.replace(item, entry=msgspec.structs.replace(item.entry, **changed))
