"""Sites that are built anew for every message, as Flower does it: what they know is on disk."""

import os

import msgspec

from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import EvaluateRequest, encode
from codream_secure.config.settings import Config
from codream_secure.sites import history, wire
from codream_secure.sites.coordinator import Coordinator
from codream_secure.sites.dream_site import DreamSite
from codream_secure.sites.policy import FILE
from codream_secure.sites.session import SiteSettings
from protocols.primitives.keys import SigningKey

OPTIONS = {
    "clients": 4,
    "rounds": 2,
    "dreams": 6,
    "dream_steps": 2,
    "warmup_epochs": 1,
    "kd_epochs": 1,
    "models": "linear,mlp",
    "seed": 0,
    "samples_per_client": 30,
    "validation": 0.0,
}
PRIVATE = {**OPTIONS, "dp_eps": 8.0, "dp_steps": 4, "models": "mlp"}
del PRIVATE["warmup_epochs"], PRIVATE["validation"]


def asking(message, change):
    """Return a message that asks for what ``change`` makes of the request; others as they are."""
    if not isinstance(message, wire.Ask):
        return message
    asked = change(decode_request(message.broadcast[history.SIZE :]))
    public = message.broadcast[: history.SIZE] + encode(asked)
    # Accuracies have odd steps.
    step = message.step + (message.step % 2 == 0 and isinstance(asked, EvaluateRequest))
    return msgspec.structs.replace(message, step=step, broadcast=public)


class Machines:
    """Sites with folders; a fault is a function of (message number, site, message).

    It may return "before" or "after": then there is no answer, and in the first case the site has
    never seen the message. It may raise: then the server is dead. ``policy``: text of the sites'
    policy file.
    """

    def __init__(self, folder, data, *, malicious=False, sites=4, policy=""):
        self.folder, self.data, self.fault = folder, data, lambda *_: None
        self.keys = [SigningKey.from_private_bytes(os.urandom(32)) for _ in range(sites)]
        self.roster = tuple(k.public for k in self.keys) if malicious else ()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(policy)
        self.count, self.log, self.messages, self.told = 0, [], [], []

    def settings(self, site):
        return SiteSettings(
            client=site,
            folder=self.folder / f"site-{site}",
            load=lambda: self.data,
            identity=self.keys[site] if self.roster else None,
            roster=self.roster,
        )

    def carry(self, messages):
        answers = {}
        for site, data in messages.items():
            message = wire.decode(data)
            self.count += 1
            self.log.append((site, type(message).__name__))
            self.messages.append((site, message))
            fault = self.fault(self.count, site, message)
            if fault == "before":
                continue
            with DreamSite(self.settings(site)) as running:
                answer = wire.encode(running.handle(message))
            if fault != "after":
                answers[site] = answer
        return answers

    def lie(self, change):
        """Let the server send what ``change`` makes of (site, message)."""
        carry = self.carry

        def lying(messages):
            return carry({s: wire.encode(change(s, wire.decode(m))) for s, m in messages.items()})

        self.carry = lying

    def coordinator(self, options, **more):
        data = self.data
        self.running = Coordinator(
            Config.from_options(options),
            spec=data.spec,
            scaling=data.scaling,
            share=30,
            carry=self.carry,
            identities=self.roster,
            test=(data.x_test, data.y_test),
            tell=self.told.append,
            **more,
        )
        return self.running
