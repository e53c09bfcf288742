"""Properties about lies: of the server to clients, and of clients and network to the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from protocols import messages, signing
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome, Subject
from protocols.audit.lying import LyingServer
from protocols.audit.sums import MODELS
from protocols.client.durable import Reply
from protocols.client.states import Party
from protocols.errors import DecodeError, LocalProtocolError, PolicyError, RemoteProtocolError
from protocols.messages import BundleDelivery, StepRequest, SurvivorSet
from protocols.params import BatchParams, Task
from protocols.phases import Phase, rounds
from protocols.policy import Policy
from protocols.primitives.keys import Entropy, SigningKey
from protocols.server.session import ServerSession

STEPS = 2
LIE = (RemoteProtocolError, DecodeError)

# Policy ----------------------------------------------------------------------------------------


class CountedEntropy:
    """An entropy source that says how often it was asked."""

    def __init__(self, seed: bytes) -> None:
        self._source = some.seeded_entropy(seed)
        self.calls = 0

    def __call__(self, size: int) -> bytes:
        """Fresh bytes."""
        self.calls += 1
        return self._source(size)


def policy_first(examples: int, subject: Subject) -> Outcome:
    """What is outside the client's policy is refused before any randomness is drawn.

    The calls of the entropy source are counted: none for a batch outside the policy, none more
    for a roster, a task, or a semi-honest batch outside it; and nothing leaves the client.
    Source: SPEC 2.4; faults w4, w12 (server-chosen n, t, modulus, clip taken as they come).
    """
    checks = Checks()

    def check(data: DataObject) -> None:
        entropy = CountedEntropy(data.draw(some.seeds))
        n = data.draw(st.integers(4, 9))
        batch = some.make_batch(n, "malicious", steps=STEPS)
        _refuse_batches(checks, data, batch, subject, entropy)
        _refuse_members(checks, batch, subject, entropy)
        _refuse_tasks(checks, data, batch, subject, entropy)

    return Outcome(some.explore(max(examples // 2, 5), check), checks.made)


def _refuse_batches(
    checks: Checks, data: DataObject, batch: BatchParams, subject: Subject, entropy: CountedEntropy
) -> None:
    by = data.draw(st.integers(1, 5))
    honest = batch.threshold
    outside = {
        "too few clients": (batch, Policy(min_clients=batch.n + by)),
        "too many colluders": (batch, Policy(colluders=honest - 2 + by)),
        "too few honest inputs": (batch, Policy(min_honest=honest + by)),
        "too many steps": (batch, Policy(max_steps=batch.steps - 1)),
        "not malicious": (some.make_batch(batch.n, "semi-honest"), Policy()),
    }
    keys = some.signing_keys(batch.roster)
    for what, (proposed, policy) in outside.items():
        before = entropy.calls
        key = keys[batch.roster[0]] if proposed.malicious else None
        checks.refused(what, PolicyError, _join, subject, entropy, proposed, key, policy)
        checks.that(entropy.calls == before, f"{what}: randomness was drawn before the refusal")


def _join(
    subject: Subject, entropy: Entropy, batch: BatchParams, key: SigningKey | None, policy: Policy
) -> None:
    party = Party(batch, batch.roster[0], key, policy)
    subject.client(party, entropy, None).advertise_keys()


def _refuse_members(
    checks: Checks, batch: BatchParams, subject: Subject, entropy: CountedEntropy
) -> None:
    """U1 is known later: 2t > |U1| + n_C is checked when it is."""
    policy = Policy(colluders=2 * batch.threshold - batch.n, min_honest=1)
    server = LyingServer(
        some.parties(batch, policy), entropy, client=subject.client, exchange=False
    )
    for u in batch.roster:
        server.advertise(u)
    before, me = entropy.calls, batch.roster[0]
    directory = messages.encode(server.true_directory())
    checks.refused("too many share holders", PolicyError, server.clients[me].share_keys, directory)
    checks.that(entropy.calls == before, "randomness was drawn for a roster that is refused")


def _refuse_tasks(
    checks: Checks, data: DataObject, batch: BatchParams, subject: Subject, entropy: CountedEntropy
) -> None:
    policy = Policy(
        first_step=5, kinds=frozenset({"sum"}), max_input=8, max_length=20, min_clip=0.5, max_clip=2
    )
    server = LyingServer(some.parties(batch, policy), entropy, client=subject.client)
    below = data.draw(st.integers(0, 4))
    outside = {
        "step": some.make_task(some.section("x", 3, 4), step=below),
        "kind": some.make_task(some.section("x", 3, 4), step=5, kind="labels"),
        "maximum": some.make_task(some.section("x", 3, 9 + below), step=5),
        "length": some.make_task(some.section("x", 11, 4), some.section("y", 10, 4), step=5),
        "small clip": some.make_task(some.section("x", 3, 4, clip=0.4), step=5),
        "large clip": some.make_task(some.section("x", 3, 4, clip=2.1 + below), step=5),
    }
    name = data.draw(st.sampled_from(sorted(outside)))
    task, me, before = outside[name], batch.roster[0], entropy.calls
    request = messages.encode(StepRequest(0, messages.encode_set(batch.roster, batch.roster)))
    inputs = {s.name: some.zeros(s.length) for s in task.sections}
    checks.refused(name, PolicyError, server.clients[me].masked_input, request, task, inputs)
    checks.that(entropy.calls == before, f"{name}: randomness was drawn for a task that is refused")
    fitting = some.make_task(some.section("x", 3, 4), step=5)
    sent = server.request(
        batch.roster[1], messages.decode(request, StepRequest, batch), fitting, {"x": some.zeros(3)}
    )
    checks.that(sent is not None, "a task within the policy is refused")


# The offline exchange --------------------------------------------------------------------------


def substitution(examples: int, subject: Subject) -> Outcome:
    """Invented, echoed, swapped, replaced and low-order keys: refused by name, and nothing leaves.

    Every false directory and every tampered bundle, to a client in the malicious model; then the
    client is dead, and only what it stored brings it back. Source: SPEC 6.2; faults w3, f1.
    """
    checks = Checks()

    def check(data: DataObject) -> None:
        batch = some.make_batch(data.draw(st.integers(4, 7)), "malicious", steps=STEPS)
        entropy = some.seeded_entropy(data.draw(some.seeds))
        server = LyingServer(some.parties(batch), entropy, client=subject.client, exchange=False)
        for u in batch.roster:
            server.advertise(u)
        me = data.draw(st.sampled_from(batch.roster))
        for what, directory in server.false_directories(me):
            encoded = messages.encode(directory)
            checks.refused(what, LIE, server.clients[me].share_keys, encoded)
            true = messages.encode(server.true_directory())
            checks.refused(
                f"after: {what}", LocalProtocolError, server.clients[me].share_keys, true
            )
            server.restart(me)
        for u in batch.roster:
            server.directory(u, server.true_directory())
        _refuse_bundles(checks, data, server, me)

    return Outcome(some.explore(max(examples // 4, 5), check), checks.made)


def _refuse_bundles(checks: Checks, data: DataObject, server: LyingServer, me: int) -> None:
    """A bundle that is not the sender's for this recipient is reported, and its sender left out."""
    roster = server.batch.roster
    sender, other = data.draw(st.permutations([u for u in roster if u != me]))[:2]
    true, place = server.true_delivery(me), [u for u in roster if u != me].index(sender)
    before = server.records[me]
    bit = data.draw(st.integers(0, 8 * len(true.bundles[place]) - 1))
    for what, bundle in {
        "of another recipient": server.bundles[sender][other],
        "of another sender": server.bundles[other][me],
        "in the other direction": server.bundles[me][sender],
        "with a flipped bit": flip(true.bundles[place], bit),
        "cut": true.bundles[place][:-1],
    }.items():
        bundles = (*true.bundles[:place], bundle, *true.bundles[place + 1 :])
        reply = server.deliver(me, BundleDelivery(true.sharers, bundles))
        checks.that(reply, f"a bundle {what} opened")
        request = StepRequest(0, messages.encode_set(roster, roster))
        task = some.make_task(some.section(some.WHO, len(roster), 1))
        checks.refused(
            f"an active client whose bundle is one {what}",
            RemoteProtocolError,
            server.clients[me].masked_input,
            messages.encode(request),
            task,
            some.one_hot(roster, me),
            saying="never opened",
        )
        server.records[me] = before
        server.restart(me)


def flip(data: bytes, bit: int) -> bytes:
    """One bit changed."""
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


# Malformed clients and the network -------------------------------------------------------------


def hostile_clients(examples: int, subject: Subject) -> Outcome:
    """Malformed, forged, replayed, late and doubled messages cost their sender, and nobody else.

    Up to n - t clients send such things in any round, the others arrive in any order: the sum is
    exactly that of the clients whose masked input was accepted. In the malicious model one flipped
    bit, another client's message or one of another session is refused wherever it comes.
    Source: SPEC 6.3, 6.5, 3.11, 8.4; faults w5, w8, f6, p3.
    """
    checks = Checks()

    def check(data: DataObject) -> None:
        model = data.draw(st.sampled_from(MODELS))
        n = data.draw(st.integers(4, 8))
        batch = some.make_batch(n, model, steps=STEPS, threshold=n // 2 + 1)
        bad = data.draw(st.permutations(batch.roster))[: n - batch.threshold]
        moments = [(phase, step) for step in range(STEPS) for phase in rounds(model)]
        kinds = FAULTS + (FORGERIES if batch.malicious else ())
        one = st.tuples(st.sampled_from(moments), st.sampled_from(kinds))
        _Hostile(checks, data, subject, batch, {u: data.draw(one) for u in bad}).run()

    return Outcome(some.explore(examples, check), checks.made)


Moment = tuple[Phase, int]
FAULTS = ("cut", "extended", "junk", "late", "doubled", "of another kind")
FORGERIES = ("flipped", "of another client", "of another session")


class _Hostile:
    """A batch of two steps between an honest server and clients of which some misbehave."""

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
        """The whole batch."""
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
        """One step: who misbehaves in it is left out or found, and the sum is that of the rest."""
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
        """Deliver what everybody sends, in any order; then end the round."""
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
        """The server refuses this, and then even the right message.

        One bit can also turn the number of a step's keys into that of a step before: such a
        message is merely late, whoever wrote it, and is not used (SPEC 1.3).
        """
        receive = self.server.receive
        if one_bit and self.late(data):
            self.checks.that(not receive(client, data), f"{what}: a late message was used")
            return
        self.checks.refused(what, LIE, receive, client, data)
        again = f"after {what}"
        self.checks.refused(again, RemoteProtocolError, receive, client, data, saying="barred")

    def late(self, data: bytes) -> bool:
        """Whether this reads as an upload of a step before the running one."""
        try:
            upload, _, _ = signing.unwrap(data, self.batch, *self.tasks)
        except DecodeError:
            return False
        key = getattr(upload, "key", None)
        return key is not None and key < len(self.tasks) - 1

    def changed(self, client: int, kind: str, moment: Moment, sent: dict[int, bytes]) -> bytes:
        """What a misbehaving client sends in place of its message."""
        data, draw = sent[client], self.data.draw
        if kind == "of another session":
            return self.elsewhere(client, moment)
        down = SurvivorSet(messages.encode_set([client], self.batch.roster))
        changed: dict[str, Callable[[], bytes]] = {
            "cut": lambda: data[: draw(st.integers(0, len(data) - 1))],
            "extended": lambda: data + draw(st.binary(min_size=1, max_size=9)),
            "junk": lambda: draw(st.binary(max_size=40)),
            "flipped": lambda: flip(data, draw(st.integers(0, 8 * len(data) - 1))),
            "of another client": lambda: next(d for u, d in sent.items() if u != client),
            "of another kind": lambda: messages.encode(down),
        }
        return changed[kind]()

    def elsewhere(self, client: int, moment: Moment) -> bytes:
        """The client's message of this round in another session with the same roster."""
        session = b"t" + self.data.draw(st.binary(min_size=31, max_size=31))  # not our zeros
        batch = replace(self.batch, session=session)
        twin = _Hostile(Checks(), self.data, self.subject, batch, {})
        twin.run()
        return twin.history[moment, client]
