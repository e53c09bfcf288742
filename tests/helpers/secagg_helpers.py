"""Parameters, inputs and half-run aggregations shared by the tests of this folder."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

import protocols
from protocols.client.session import ClientSession
from protocols.params import AggregationParams, Section, default_threshold
from protocols.phases import Phase, round_phases
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey
from protocols.server.session import ServerSession

ROUNDS = round_phases("semi-honest")
ROOM = Path(protocols.__file__).parent


def make_params(
    n: int = 4, *sections: tuple[str, int, int], **changes: object
) -> AggregationParams:
    sections = sections or (("g", 5, 4),)
    values: dict[str, object] = {
        "session": bytes(32),
        "step": 7,
        "kind": "gradient",
        "roster": tuple(range(10, 10 + 3 * n, 3)),
        "threshold": default_threshold(n),
        "sections": tuple(
            Section(name=name, length=length, maximum=2**bits - 1, clip=1.0)
            for name, length, bits in sections
        ),
        "broadcast_digest": b"d" * 32,
    }
    return AggregationParams(**{**values, **changes})


def signing_keys(roster) -> dict[int, SigningKey]:
    return {u: SigningKey.from_private_bytes(u.to_bytes(32, "big")) for u in roster}


def malicious_params(n: int = 5, *sections, **changes):
    roster = changes.get("roster", tuple(range(10, 10 + 3 * n, 3)))
    identities = tuple(key.public for key in signing_keys(roster).values())
    return make_params(n, *sections, threat_model="malicious", identities=identities, **changes)


def make_inputs(params: AggregationParams, seed: int = 0) -> dict[int, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        u: {
            s.name: rng.integers(0, s.maximum + 1, s.length, dtype=np.uint32)
            for s in params.sections
        }
        for u in params.roster
    }


def plain_sum(inputs, survivors, params) -> dict[str, list[int]]:
    return {
        s.name: [sum(int(inputs[u][s.name][i]) for u in survivors) for i in range(s.length)]
        for s in params.sections
    }


def fixed_entropy(seed: bytes = b"fixed") -> Callable[[int], bytes]:
    """SHA-256 in counter mode; for tests that compare bytes."""
    counter = 0

    def entropy(size: int) -> bytes:
        nonlocal counter
        out = b""
        while len(out) < size:
            out += hashlib.sha256(seed + counter.to_bytes(8, "big")).digest()
            counter += 1
        return out[:size]

    return entropy


def rounds_of(params: AggregationParams) -> tuple[Phase, ...]:
    return round_phases(params.threat_model, ring=params.ring is not None)


class Run:
    """One aggregation: sessions, and the replies of the rounds run so far; nobody drops."""

    def __init__(self, params: AggregationParams, upto: Phase | None = None, **mixed) -> None:
        """`mixed["params_of"]` gives single clients parameters of their own."""
        self.params = params
        self.batch, self.task = params.batch, params.task
        self.own = mixed.get("params_of", {})
        entropy = fixed_entropy()
        self.server = ServerSession(self.batch)
        keys = signing_keys(params.roster) if self.batch.malicious else {}
        policy = Policy() if self.batch.malicious else None
        self.clients = {
            u: ClientSession(
                self.own.get(u, params).batch, u, entropy, identity=keys.get(u), policy=policy
            )
            for u in params.roster
        }
        self.inputs = make_inputs(params)
        self.replies: dict[int, bytes] = {}
        self.sent: dict[int, bytes] = {}
        self.begun = False
        for phase in rounds_of(params) if upto else ():
            self.round(phase)
            if phase == upto:
                break

    def begin(self) -> None:
        """Deliver the bundles, report, and begin the step."""
        self.begun = True
        for u, delivery in self.replies.items():
            report = self.clients[u].open_bundles(delivery)
            if report is not None:
                self.server.receive(u, report)
        self.replies = self.server.begin_step(self.task)

    def answer(self, u: int, phase: Phase) -> bytes:
        client = self.clients[u]
        if phase == Phase.MASKED_INPUT and self.replies and not self.begun:
            self.begin()
        reply = self.replies.get(u, b"")
        match phase:
            case Phase.ADVERTISE_KEYS:
                return client.advertise_keys()
            case Phase.DRAW_GRAPH:
                return client.draw_graph(reply)
            case Phase.SHARE_KEYS:
                return client.share_keys(reply)
            case Phase.MASKED_INPUT:
                return client.masked_input(reply, self.own.get(u, self.params).task, self.inputs[u])
            case Phase.CONSISTENCY:
                return client.confirm(reply)
            case Phase.UNMASKING:
                return client.unmask(reply)

    def round(self, phase: Phase, silent: frozenset[int] = frozenset()) -> None:
        if phase == Phase.MASKED_INPUT and not self.begun:
            self.begin()
        waiting = self.replies or self.params.roster
        self.sent = {u: self.answer(u, phase) for u in waiting if u not in silent}
        for u, data in self.sent.items():
            self.server.receive(u, data)
        self.replies = dict(self.server.end_round())


@st.composite
def aggregations(draw) -> tuple[AggregationParams, dict, dict[int, Phase]]:
    """Parameters, inputs and any drop pattern."""
    n = draw(st.integers(3, 12))
    count = draw(st.integers(1, 3))
    sections = [(f"s{i}", draw(st.integers(1, 40)), draw(st.integers(1, 16))) for i in range(count)]
    ids = draw(st.sets(st.integers(0, 2**64 - 1), min_size=n, max_size=n))
    threshold = draw(st.integers(n // 2 + 1, n))
    params = make_params(n, *sections, roster=tuple(sorted(ids)), threshold=threshold)
    extremes = draw(st.booleans())
    inputs = make_inputs(params, draw(st.integers(0, 2**32)))
    if extremes:
        inputs = {
            u: {s.name: np.full(s.length, s.maximum, np.uint32) for s in params.sections}
            for u in params.roster
        }
    spare = n - threshold
    # About half the patterns stay at or above the threshold.
    limit = draw(st.sampled_from([spare, spare, n]))
    dropping = draw(st.sets(st.sampled_from(params.roster), max_size=limit))
    return params, inputs, {u: draw(st.sampled_from(ROUNDS)) for u in sorted(dropping)}
