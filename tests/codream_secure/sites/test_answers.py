"""What a site sends depends on public facts: whatever its data and model are, it answers alike."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import torch
from machines import OPTIONS

from codream_secure.models.build import build_model
from codream_secure.sites import wire
from protocols import messages
from protocols.primitives.keys import SigningKey

RUN = {**OPTIONS, "rounds": 1, "dreams": 4, "dream_steps": 1, "models": "linear"}
SITE = 1


def broken_model(what):
    """Return a function that builds a linear model which fails in the named way."""

    class Broken(torch.nn.Module):
        def __init__(self, spec):
            super().__init__()
            self.inner = build_model("linear", spec, norm="batch", seed=0)
            if what == "nan":
                for parameter in self.inner.parameters():
                    torch.nn.init.constant_(parameter, torch.nan)

        def forward(self, x):
            if what == "raises":
                raise RuntimeError("a model that raises")
            if what == "wrong shape":
                return self.inner(x)[:, :3]
            return self.inner(x)

    return Broken


def changed(data, what, draw):
    """Return a site's private data: all, random, constant, of one class, or one example."""
    x, y = data.x_train[:40], data.y_train[:40]
    if what == "random":
        x = draw.random(x.shape).astype(x.dtype)
    elif what == "constant":
        x = np.zeros_like(x)
    elif what == "one class":
        x, y = (part[data.y_train == 3][:12] for part in (data.x_train, data.y_train))
    elif what in {"two examples", "one example"}:
        few = 1 + (what == "two examples")
        x, y = x[:few], y[:few]
    return replace(data, x_train=x, y_train=y, x_test=data.x_test[:20], y_test=data.y_test[:20])


def session(machines, data, monkeypatch, folder, *, what="usual", malicious=False):
    """Run a session; return what the sites answered, masked inputs by their sizes alone."""
    there = machines(malicious=malicious)
    if malicious:
        there.keys = [SigningKey.from_private_bytes(bytes([9 + site] * 32)) for site in range(4)]
        there.roster = tuple(key.public for key in there.keys)
    there.folder = there.folder.with_name(folder)
    real, own = there.settings, changed(data, what, np.random.default_rng(0))
    there.settings = lambda site: replace(
        real(site), load=lambda: own if site == SITE else changed(data, "usual", None), whole=True
    )
    if what in {"raises", "nan", "wrong shape"}:
        make, original = broken_model(what), build_model

        def build(name, spec, **options):
            lies = there.asked == SITE
            return make(spec) if lies else original(name, spec, **options)

        monkeypatch.setattr("codream_secure.federation.run_models.build_model", build)
    answers, carry = [], there.carry

    def one_by_one(sent):
        found = {}
        for site, message in sent.items():
            there.asked = site
            found |= carry({site: message})
            answers.append((site, seen(wire.decode(message), wire.decode_answer(found[site]))))
        there.asked = None
        return found

    there.carry, there.asked = one_by_one, None
    secrets = itertools.count()
    entropy = SimpleNamespace(urandom=lambda n: next(secrets).to_bytes(n, "big"))
    for module in ("site", "coordinator", "presence"):
        monkeypatch.setattr(f"codream_secure.sites.{module}.os", entropy)
    model = {"threat_model": "malicious" if malicious else "semi-honest"}
    rounds = list(there.coordinator(RUN | model).rounds())
    assert [one.learned for one in rounds] == [4]
    assert not there.running.sites.refused
    return answers


def seen(asked, answer):
    if isinstance(asked, wire.Ask):
        masked = msgspec.msgpack.decode(inside(answer.data), type=messages.MaskedInput)
        return masked.key, *map(len, masked.sections), answer.report, answer.key_exchange
    return type(asked).__name__, msgspec.structs.replace(answer, data=inside(answer.data))


def inside(data):
    """Return a message without its signature.

    It is over the masked sections, or over the step's request, which follows from earlier sums.
    """
    try:
        return msgspec.msgpack.decode(data, type=messages.Signed).body
    except msgspec.DecodeError:
        return data


# A model of a wrong shape, or one that raises, is a user-defined one.
PRIVATE = ["random", "constant", "one class", "two examples", "one example"]
PRIVATE += ["nan", "raises", "wrong shape"]


def test_in_the_malicious_model_they_look_alike_too(machines, data, monkeypatch):
    """Survivor sets, the record and its proofs included."""
    usual = session(machines, data, monkeypatch, "usual", malicious=True)
    assert {answer[0] for _, answer in usual if isinstance(answer[0], str)} >= {"Confirm", "Unmask"}
    for what in ("constant", "one example", "raises"):
        found = session(machines, data, monkeypatch, what, what=what, malicious=True)
        assert found == usual, what


def test_sessions_over_different_private_data_look_alike(machines, data, monkeypatch, caplog):
    """Non-interference, with the same entropy: equal messages in the same order.

    Equal byte for byte but for the masked sections. Before, a NaN, a model that raised, and a
    loss that overflowed were refusals, and the server heard of them.
    """
    usual = session(machines, data, monkeypatch, "usual")
    masked = [answer for _, answer in usual if isinstance(answer[0], int)]
    assert len(masked) >= 8
    for what in PRIVATE:
        assert session(machines, data, monkeypatch, what, what=what) == usual, what
    assert "a model that raises" in caplog.text
    assert "count as 0 or as the clip" in caplog.text
