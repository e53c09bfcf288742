"""A property about malformed clients and a bad network: only the sender pays (SPEC 6.5, 8.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from protocols import messages, signing
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome
from protocols.audit.subject import Subject
from protocols.client.durable import Reply
from protocols.errors import DecodeError, RemoteProtocolError
from protocols.messages import SurvivorSet
from protocols.params import BatchParams, Task
from protocols.phases import Phase, round_phases
from protocols.server.session import ServerSession

STEPS = 2
LIE = (RemoteProtocolError, DecodeError)

Moment = tuple[Phase, int]
FAULTS = ("cut", "extended", "junk", "late", "doubled", "of another kind")
FORGERIES = ("flipped", "of another client", "of another session")


def hostile_clients(examples: int, subject: Subject) -> Outcome:
    """Malformed, forged, replayed, late and doubled messages harm only the client that sends them.

    Up to n - t clients send such messages in any round, and messages arrive in any order. The sum
    is exactly that of the clients whose masked input was accepted. In the malicious model the
    server also refuses a flipped bit, another client's message, and one of another session.
    Source: SPEC 6.3, 6.5, 3.11, 8.4; faults w5, w8, f6, p3.
    """
    checks = Checks()

    def check(data: DataObject) -> None:
        model = data.draw(st.sampled_from(some.MODELS))
        n = data.draw(st.integers(4, 8))
        batch = some.make_batch(n, model, steps=STEPS, threshold=n // 2 + 1)
        bad = data.draw(st.permutations(batch.roster))[: n - batch.threshold]
        moments = [(phase, step) for step in range(STEPS) for phase in round_phases(model)]
        kinds = FAULTS + (FORGERIES if batch.malicious else ())
        one = st.tuples(st.sampled_from(moments), st.sampled_from(kinds))
        _Hostile(checks, data, subject, batch, {u: data.draw(one) for u in bad}).run()

    return Outcome(some.explore(examples, check), checks.made)


class _Hostile:
    """A batch of two steps between an honest server and clients, some of which misbehave."""

    def __init__(
        self,
        checks: Checks,
        data: DataObject,
        subject: Subject,
        batch: BatchParams,
        faults: dict[int, tuple[Moment, str]],
    ) -> None:
        self.checks, self.data, self.subject = checks, data, subject
        self.batch, self.faults = batch, faults
        entropy = some.seeded_entropy(data.draw(some.seeds))
        self.clients = {u: subject.client(p, entropy, None) for u, p in some.parties(batch).items()}
        self.server = ServerSession(batch)
        self.gone: set[int] = set()
        self.tasks: list[Task] = []
        self.accepted: list[int] = []
        self.history: dict[tuple[Moment, int], bytes] = {}

    def run(self) -> None:
        """Run the whole batch."""
        clients = self.clients
        keys = self.round(
            (Phase.ADVERTISE_KEYS, 0), self.batch.roster, lambda u: clients[u].advertise_keys()
        )
        bundles = self.round((Phase.SHARE_KEYS, 0), keys, lambda u: clients[u].share_keys(keys[u]))
        for u, delivery in bundles.items():
            report = clients[u].open_bundles(delivery).message
            self.checks.that(report == b"", f"client {u} could not open an honest bundle")
        for step in range(STEPS):
            self.step(step)

    def step(self, step: int) -> None:
        """Run one step, and check that its sum is that of the clients that were accepted."""
        roster, clients = self.batch.roster, self.clients
        task = some.make_task(some.section(some.WHO, len(roster), 1), step=step)
        requests = self.server.begin_step(task)
        self.tasks.append(task)
        survivors = self.round(
            (Phase.MASKED_INPUT, step),
            requests,
            lambda u: clients[u].masked_input(requests[u], task, some.one_hot(roster, u)),
        )
        expected, shown = sorted(self.accepted), survivors
        if self.batch.malicious:
            shown = self.round(
                (Phase.CONSISTENCY, step), survivors, lambda u: clients[u].confirm(survivors[u])
            )
        self.round((Phase.UNMASKING, step), shown, lambda u: clients[u].unmask(shown[u]))
        result = self.server.result
        who = some.named(roster, result.totals[some.WHO])
        self.checks.that(list(result.survivors) == expected, "other survivors than were accepted")
        self.checks.that(who == expected, f"the sum names {who}, not {expected}")

    def round(
        self, moment: Moment, waiting: Iterable[int], answer: Callable[[int], Reply]
    ) -> dict[int, bytes]:
        """Deliver what all clients send, in any order, and end the round."""
        sent = {u: answer(u).message for u in waiting if u not in self.gone}
        self.history |= {(moment, u): data for u, data in sent.items()}
        late = []
        self.accepted = []
        for u in self.data.draw(st.permutations(sorted(sent))):
            due, kind = self.faults.get(u, (None, ""))
            if due != moment:
                self.checks.that(self.server.receive(u, sent[u]), f"client {u} was not heard")
                self.accepted.append(u)
                continue
            self.gone.add(u)
            if kind == "late":
                late.append(u)
            elif kind == "doubled":
                self.accepted.append(u)
                self.server.receive(u, sent[u])
                self.refused(u, sent[u], "a second message")
            else:
                changed = self.changed(u, kind, moment, sent)
                self.refused(u, changed, f"{moment[0]} {kind}", one_bit=kind == "flipped")
        replies = dict(self.server.end_round())
        for u in late:
            self.checks.that(not self.server.receive(u, sent[u]), "a late message was used")
        return replies

    def refused(self, client: int, data: bytes, what: str, *, one_bit: bool = False) -> None:
        """Check that the server refuses this message, and afterwards everything from its sender.

        A flipped bit can turn the key step into an earlier one. Such a message is merely late: the
        server does not use it, and bars nobody for it (SPEC 1.3).
        """
        receive = self.server.receive
        if one_bit and self.late(data):
            self.checks.that(not receive(client, data), f"{what}: a late message was used")
            return
        self.checks.refused(what, LIE, receive, client, data)
        again = f"after {what}"
        self.checks.refused(again, RemoteProtocolError, receive, client, data, saying="barred")

    def late(self, data: bytes) -> bool:
        """Tell whether this decodes as an upload of an earlier step."""
        try:
            upload, _, _ = signing.unwrap(data, self.batch, *self.tasks)
        except DecodeError:
            return False
        key = getattr(upload, "key", None)
        return key is not None and key < len(self.tasks) - 1

    def changed(self, client: int, kind: str, moment: Moment, sent: dict[int, bytes]) -> bytes:
        """Return what a misbehaving client sends in place of its message."""
        data, draw = sent[client], self.data.draw
        if kind == "of another session":
            return self.elsewhere(client, moment)
        down = SurvivorSet(messages.encode_set([client], self.batch.roster))
        changed: dict[str, Callable[[], bytes]] = {
            "cut": lambda: data[: draw(st.integers(0, len(data) - 1))],
            "extended": lambda: data + draw(st.binary(min_size=1, max_size=9)),
            "junk": lambda: draw(st.binary(max_size=40)),
            "flipped": lambda: some.flip(data, draw(st.integers(0, 8 * len(data) - 1))),
            "of another client": lambda: next(d for u, d in sent.items() if u != client),
            "of another kind": lambda: messages.encode(down),
        }
        return changed[kind]()

    def elsewhere(self, client: int, moment: Moment) -> bytes:
        """Return the client's message of this round in another session with the same roster."""
        session = b"t" + self.data.draw(
            st.binary(min_size=31, max_size=31)
        )  # the session of `make_batch` is zeros
        batch = replace(self.batch, session=session)
        twin = _Hostile(Checks(), self.data, self.subject, batch, {})
        twin.run()
        return twin.history[moment, client]
