"""Properties about lies of the server before a step: what each client must refuse."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from protocols import messages
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome
from protocols.audit.hostile import LIE, STEPS
from protocols.audit.lying import LyingServer
from protocols.audit.subject import Subject
from protocols.client.states import Party
from protocols.errors import LocalProtocolError, PolicyError, RemoteProtocolError
from protocols.messages import BundleDelivery, StepRequest
from protocols.params import BatchParams
from protocols.policy import Policy
from protocols.primitives.keys import Entropy, SigningKey

# Policy ----------------------------------------------------------------------------------------


class CountedEntropy:
    """An entropy source that counts its calls."""

    def __init__(self, seed: bytes) -> None:
        self._source = some.seeded_entropy(seed)
        self.calls = 0

    def __call__(self, size: int) -> bytes:
        """Return fresh bytes."""
        self.calls += 1
        return self._source(size)


def policy_first(examples: int, subject: Subject) -> Outcome:
    """A client refuses what is outside its policy before it draws any randomness.

    The property counts the calls of the entropy source. A refused batch, roster or task must cause
    none, and the client must send nothing.
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
    """Check 2t > |U1| + n_C, which a client can check only when it learns U1 in round 1."""
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
    """A client refuses invented, echoed, swapped, replaced and low-order keys, and sends nothing.

    A client of the malicious model gets every false directory and every tampered bundle. After a
    refusal it answers nothing, until it restarts from its record. Source: SPEC 6.2; faults w3, f1.
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
    """Check that a client reports a bundle that its sender did not seal for it, and refuses it."""
    roster = server.batch.roster
    sender, other = data.draw(st.permutations([u for u in roster if u != me]))[:2]
    true, place = server.true_delivery(me), [u for u in roster if u != me].index(sender)
    before = server.records[me]
    bit = data.draw(st.integers(0, 8 * len(true.bundles[place]) - 1))
    for what, bundle in {
        "of another recipient": server.bundles[sender][other],
        "of another sender": server.bundles[other][me],
        "in the other direction": server.bundles[me][sender],
        "with a flipped bit": some.flip(true.bundles[place], bit),
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
