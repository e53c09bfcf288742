"""A lying server as a state machine: any message to anybody, in any order, at any time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from protocols import messages
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome, Subject
from protocols.audit.lies import flip
from protocols.audit.lying import LyingServer
from protocols.client.states import Party
from protocols.messages import (
    BundleDelivery,
    ConsistencyProof,
    KeyDirectory,
    StepRequest,
    SurvivorSet,
)
from protocols.params import BatchParams, Task
from protocols.policy import Policy

CLIENTS, THRESHOLD, STEPS = 6, 4, 2
CORRUPT = 10
BATCH = some.make_batch(CLIENTS, "malicious", steps=STEPS, threshold=THRESHOLD)
POLICY = Policy(colluders=1)
HONEST = frozenset(BATCH.roster) - {CORRUPT}
STAGES = ("share_keys", "open_bundles", "masked_input", "confirm", "unmask")

_clients = st.sampled_from(BATCH.roster)
_members = some.member_sets(BATCH)
_keys = st.integers(0, STEPS - 1)
_splits = st.sampled_from([CLIENTS, CLIENTS, 3, 4])


def task_of(key: int, broadcast: int = 0) -> Task:
    """One-hot inputs: a sum over GF(7) names who is in it."""
    return some.make_task(some.section(some.WHO, CLIENTS, 1), step=key, broadcast=broadcast)


def lying_server(examples: int, subject: Subject) -> Outcome:
    """Whatever a lying server with one corrupt client does: no sum of too few honest inputs opens.

    n = 6, t = 4, n_C = 1, malicious. The server shows different directories, deliveries, requests,
    broadcasts, survivor sets and proofs to different clients, repeats, reorders, delays and drops
    them, flips bits, replays other steps and another session, and clients restart at any time.
    After every action: nobody gave both kinds of share or two answers at one stage, whatever was
    accepted keeps the client's rules of SPEC 6.3, 6.4 and 6.8, and the reference attacker opens
    only exact sums of at least t - n_C honest inputs.
    Source: SPEC 1.6, 6.4, 6.7, 6.8, D3; faults w2, w3.
    """
    return _run(examples, subject, BATCH)


def semi_honest_gate(examples: int, subject: Subject) -> Outcome:
    """The same server to clients of the semi-honest model: never both shares, one answer a stage.

    Nothing is promised there about the sums of a lying server (SPEC 1.2); the gate and the
    replay protection hold all the same. Source: SPEC 6.4, 6.7; fault w2.
    """
    honest = some.make_batch(CLIENTS, "semi-honest", steps=STEPS, threshold=THRESHOLD)
    return _run(examples, subject, honest)


def _run(examples: int, subject: Subject, batch: BatchParams) -> Outcome:
    checks, ran = Checks(), 0
    _attacker_works(checks, subject, batch)
    elsewhere = _recorded(subject, batch)

    class Machine(_LyingServerMachine):
        def __init__(self) -> None:
            nonlocal ran
            ran += 1
            super().__init__(subject, checks, batch, elsewhere)

    for attack in ATTACKS:
        scripted = Machine()
        scripted.offline_exchange(
            split=CLIENTS, other="fewer", restarts=set(), tampered={}, lied_to=None
        )
        attack(scripted)
        scripted.always_one_kind_and_one_answer()
        scripted.always_enough_honest_inputs()
    settings = some.profile(max(examples // 2, 5))
    run_state_machine_as_test(Machine, settings=settings)
    return Outcome(ran, checks.made)


def _attacker_works(checks: Checks, subject: Subject, batch: BatchParams) -> None:
    """The control: an honest step opens the sum of its survivors, after its last message."""
    server = LyingServer(_parties(batch), some.seeded_entropy(b"control"), client=subject.client)
    roster, alive = batch.roster, batch.roster[1:]
    for u in roster:
        request = StepRequest(0, messages.encode_set(roster, roster))
        server.request(u, request, task_of(0), some.one_hot(roster, u))
    checks.that(not server.attacker.opened(), "a sum opens before anything was unmasked")
    for u in alive:
        server.survivors(u, alive)
    for u in alive if batch.malicious else ():
        server.proof(u, alive)
    opened = server.attacker.opened()
    checks.that([o.members for o in opened] == [frozenset(alive)], "an honest step gives no sum")
    named = [some.named(roster, o.totals[some.WHO]) for o in opened]
    checks.that(named == [list(alive)], f"an honest step sums {named}")


def _recorded(subject: Subject, batch: BatchParams) -> dict[tuple[int, str], bytes]:
    """What an honest server sent down in another session with the same roster."""
    other = some.make_batch(
        CLIENTS, batch.threat_model, steps=STEPS, threshold=THRESHOLD, session=b"o" * 32
    )
    server = LyingServer(_parties(other), some.seeded_entropy(b"other"), client=subject.client)
    request = StepRequest(0, messages.encode_set(other.roster, other.roster))
    for u in other.roster:
        server.request(u, request, task_of(0), some.one_hot(other.roster, u))
    for u in other.roster:
        server.survivors(u, other.roster)
    for u in other.roster if other.malicious else ():
        server.proof(u, other.roster)
    return server.shown


def _parties(batch: BatchParams) -> dict[int, Party]:
    return some.parties(batch, POLICY if batch.malicious else None)


class _LyingServerMachine(RuleBasedStateMachine):
    """See `lying_server`."""

    def __init__(
        self,
        subject: Subject,
        checks: Checks,
        batch: BatchParams,
        elsewhere: dict[tuple[int, str], bytes],
    ) -> None:
        super().__init__()
        self.checks, self.batch, self.elsewhere = checks, batch, elsewhere
        self.cohorts: dict[int, frozenset[int]] = {}
        entropy = some.seeded_entropy(b"machine")
        self.server = LyingServer(
            _parties(batch), entropy, [CORRUPT], subject.client, exchange=False
        )

    # Offline -----------------------------------------------------------------------------------

    @initialize(
        split=_splits,
        other=st.sampled_from(["fewer", "second keys"]),
        restarts=st.sets(_clients, max_size=2),
        tampered=st.dictionaries(st.tuples(_clients, _clients), st.integers(0, 9), max_size=2),
        lied_to=st.none() | _clients,
    )
    def offline_exchange(
        self,
        split: int,
        other: str,
        restarts: set[int],
        tampered: dict[tuple[int, int], int],
        lied_to: int | None,
    ) -> None:
        """Mostly honest; else two directories, tampered bundles, restarts, refused lies before."""
        for u in self.batch.roster:
            self.server.advertise(u)
        if lied_to is not None:
            self._false_directories(lied_to)
        for index, u in enumerate(self.batch.roster):
            shown = self.server.true_directory() if index < split else self._other_directory(other)
            self.server.directory(u, shown)
        for u in restarts:
            self.server.restart(u)
        for u in self.batch.roster:
            self.server.deliver(u, self._delivery(u, tampered))

    def _false_directories(self, client: int) -> None:
        for what, directory in self.server.false_directories(client):
            reply = self.server.directory(client, directory)
            if self.batch.malicious:
                self.checks.that(reply is None, f"a directory was accepted: {what}")
            if reply is not None:
                return  # the semi-honest model takes keys as they come
            self.server.restart(client)

    def _other_directory(self, kind: str) -> KeyDirectory:
        true = self.server.true_directory()
        if kind == "fewer":
            return self.server.true_directory(self.batch.roster[1:])
        second = self.server.second_advertisement(CORRUPT, some.seeded_entropy(b"second"))
        place = self.batch.roster.index(CORRUPT)
        listed = true.advertisements
        return KeyDirectory(true.members, (*listed[:place], second, *listed[place + 1 :]))

    def _delivery(self, client: int, tampered: dict[tuple[int, int], int]) -> BundleDelivery:
        true = self.server.true_delivery(client)
        senders = [u for u in messages.decode_set(true.sharers, self.batch.roster) if u != client]
        bundles = [
            flip(data, tampered[u, client]) if (u, client) in tampered else data
            for u, data in zip(senders, true.bundles, strict=True)
        ]
        return BundleDelivery(true.sharers, tuple(bundles))

    @rule(u=_clients, members=_members)
    def late_or_repeated_directory(self, u: int, members: tuple[int, ...]) -> None:
        """Round 0 again, to a client that may be anywhere."""
        self.server.directory(u, self.server.true_directory(members))

    @rule(u=_clients, members=_members)
    def late_or_repeated_delivery(self, u: int, members: tuple[int, ...]) -> None:
        """Round 1 again, from other sharers."""
        self.server.deliver(u, self.server.true_delivery(u, members))

    @rule(u=_clients)
    def advertise_again(self, u: int) -> None:
        """The first call again."""
        self.server.advertise(u)

    # Steps -------------------------------------------------------------------------------------

    @rule(u=_clients, request=some.step_requests(BATCH), broadcast=st.integers(0, 1))
    def request_of_any_kind(self, u: int, request: StepRequest, broadcast: int) -> None:
        """Any keys, active set and broadcast to one client."""
        self._request(u, request, broadcast)

    @rule(members=_members, key=_keys, split=st.integers(0, CLIENTS))
    def same_request_to_all_but_the_broadcast(
        self, members: Sequence[int], key: int, split: int
    ) -> None:
        """One active set, and a second broadcast to some of it."""
        request = StepRequest(key, messages.encode_set(members, self.batch.roster))
        for index, u in enumerate(members):
            self._request(u, request, int(index < split))

    def _request(self, u: int, request: StepRequest, broadcast: int) -> None:
        self._send_request(u, request, task_of(request.key, broadcast))

    def _send_request(self, u: int, message: StepRequest | bytes, task: Task) -> bytes | None:
        before = self.server.told.get(u)
        x = some.one_hot(self.batch.roster, u)
        reply = self.server.request(u, message, task, x)
        if reply is not None and self.server.told[u] != before:
            self._check_request(u, before, *self.server.told[u])
        return reply

    def _check_request(
        self, u: int, before: tuple[StepRequest, Task] | None, request: StepRequest, task: Task
    ) -> None:
        """What a client has answered kept the rules of SPEC 6.3."""
        active = frozenset(messages.decode_set(request.active, self.batch.roster))
        self.checks.that(len(active) >= THRESHOLD, "an active set below the threshold")
        self.checks.that(u in active, "an active set without the client itself")
        self.checks.that(request.key < STEPS, "keys that were never made")
        if before is not None:
            self.checks.that(request.key > before[0].key, "spent keys were used")
            self.checks.that(task.step > before[1].step, "a step number does not grow")
        if self.batch.malicious:
            shrunk = active <= self.cohorts.get(u, active)
            self.checks.that(shrunk, "a client that missed a step is active again")
        self.cohorts[u] = active

    @rule(u=_clients, key=_keys)
    def requests_and_survivor_sets_against_a_rule(self, u: int, key: int) -> None:
        """To one client: too few, without itself, keys never made, a survivor not active."""
        others = [v for v in self.batch.roster if v != u]
        for wanted, members in (
            (key, [u, *others[: THRESHOLD - 2]]),
            (key, others),
            (STEPS, self.batch.roster),
            (key, [u, *others[:-1]]),  # this one is in order
        ):
            request = StepRequest(wanted, messages.encode_set(members, self.batch.roster))
            self._request(u, request, 0)
            self.server.restart(u)
        for members in ([u, *others[: THRESHOLD - 2]], others[:-1], self.batch.roster):
            self._send_survivors(u, tuple(members))
            self.server.restart(u)

    @rule(u=_clients, members=_members)
    def survivor_set_of_any_kind(self, u: int, members: tuple[int, ...]) -> None:
        """Any U3 to one client."""
        self._send_survivors(u, members)

    def _send_survivors(self, u: int, message: tuple[int, ...] | bytes) -> bytes | None:
        reply = self.server.survivors(u, message)
        if reply is not None:
            data = messages.decode(self.server.shown[u, "confirm"], SurvivorSet, self.batch)
            chosen = frozenset(messages.decode_set(data.survivors, self.batch.roster))
            active = messages.decode_set(self.server.told[u][0].active, self.batch.roster)
            self.checks.that(chosen <= set(active), "a survivor that was not active")
            self.checks.that(u in chosen, "survivors without the client itself")
            self.checks.that(len(chosen) >= THRESHOLD, "fewer survivors than the threshold")
            self.cohorts[u] = chosen
        return reply

    @rule(first=_members, second=_members, split=_splits)
    def two_survivor_sets_to_who_can_accept_them(
        self, first: tuple[int, ...], second: tuple[int, ...], split: int
    ) -> None:
        """Equivocation about U3."""
        for index, u in enumerate(self.batch.roster):
            chosen = first if index < split else second
            if u in chosen:
                self._send_survivors(u, chosen)

    @rule(order=st.permutations(sorted(HONEST)), key=_keys)
    def everybody_is_told_another_survivor_set(self, order: list[int], key: int) -> None:
        """Without the signatures of t others the shares of this would open a sum of two."""
        self.same_request_to_all_but_the_broadcast(self.batch.roster, key, 0)
        v1, v2, w1, w2, w3 = order
        lies = {w1: {w2, w3}, w2: {w1, w3}, w3: {w1, w2}, v1: {w1, w2}, v2: {w3}}
        told = {u: tuple(sorted(set(self.batch.roster) - gone)) for u, gone in lies.items()}
        for u, members in told.items():
            self._send_survivors(u, members)
        for u, members in told.items() if self.batch.malicious else ():
            self._send_proof(u, members)
            self.forged_proofs(u)

    @rule(like=_clients, members=_members)
    def corrupt_client_signs_anything(self, like: int, members: tuple[int, ...]) -> None:
        """The corrupt client supports any U3."""
        if self.batch.malicious and like in self.server.told:
            self.server.sign_for(CORRUPT, like, members)

    @rule(key=_keys)
    def corrupt_client_signs_what_it_is_not_in(self, key: int) -> None:
        """Everybody honest signs the honest set, and one signature too many comes with it."""
        self.same_request_to_all_but_the_broadcast(self.batch.roster, key, 0)
        for u in sorted(HONEST) if self.batch.malicious else ():
            self._send_survivors(u, tuple(sorted(HONEST)))
        for u in sorted(HONEST) if self.batch.malicious else ():
            self.corrupt_client_signs_anything(u, tuple(sorted(HONEST)))
            self._send_proof(u, tuple(sorted(HONEST)))

    @rule(u=_clients, members=_members)
    def proof_about_any_set(self, u: int, members: tuple[int, ...]) -> None:
        """All signatures on a set, whatever the client signed itself."""
        if self.batch.malicious:
            self._send_proof(u, members)

    @rule(u=_clients)
    def forged_proofs(self, u: int) -> None:
        """Signatures of nobody, of somebody else, one too few, and of one outside the set."""
        told = self.server.told_survivors.get(u, ())
        true = self.server.signatures.get(told, {})
        if not (self.batch.malicious and true):
            return
        roster, one = self.batch.roster, next(iter(true.values()))
        zeros = tuple(true.get(v, bytes(64)) for v in told)
        repeated = tuple(true.get(v, one) for v in told)
        for named, signatures in (
            (told, zeros),
            (told, repeated),
            (told, repeated[:-1]),
            (roster, tuple(true.get(v, one) for v in roster)),
        ):
            proof = ConsistencyProof(messages.encode_set(named, roster), signatures)
            self._send_proof(u, messages.encode(proof))
            self.server.restart(u)

    def _send_proof(self, u: int, message: tuple[int, ...] | bytes) -> bytes | None:
        reply = self.server.proof(u, message)
        if reply is not None and self.batch.malicious:
            data = messages.decode(self.server.shown[u, "unmask"], ConsistencyProof, self.batch)
            signers = messages.decode_set(data.signers, self.batch.roster)
            told = self.server.told_survivors[u]
            true = self.server.signatures[told]
            named = dict(zip(signers, data.signatures, strict=False))
            self.checks.that(len(named) >= THRESHOLD, "fewer signatures than the threshold")
            self.checks.that(set(named) <= set(told), "a signer that is no survivor")
            self.checks.that(
                all(true.get(v) == signature for v, signature in named.items()),
                "a signature that its signer did not make on this set",
            )
        return reply

    @rule()
    def to_everybody_the_proof_of_what_it_was_told(self) -> None:
        """Go on as far as anybody can."""
        for u, members in list(self.server.told_survivors.items()):
            self._send_proof(u, members)

    @rule(
        key=_keys,
        broadcasts=st.sampled_from([0, 0, 3]),
        first=_members,
        second=_members,
        split=_splits,
    )
    def a_whole_step_of_lies(
        self,
        key: int,
        broadcasts: int,
        first: tuple[int, ...],
        second: tuple[int, ...],
        split: int,
    ) -> None:
        """What takes several messages in a row to go wrong."""
        self.same_request_to_all_but_the_broadcast(self.batch.roster, key, broadcasts)
        self.two_survivor_sets_to_who_can_accept_them(first, second, split)
        for like, members in ((self.batch.roster[1], first), (self.batch.roster[5], second)):
            self.corrupt_client_signs_anything(like, members)
        self.to_everybody_the_proof_of_what_it_was_told()

    # Any time ----------------------------------------------------------------------------------

    @rule(u=_clients)
    def restart(self, u: int) -> None:
        """The process dies and comes back with what it stored."""
        self.server.restart(u)

    @rule(u=_clients, stage=st.sampled_from(STAGES), bit=st.integers(0, 2000), key=_keys)
    def last_message_with_a_flipped_bit(self, u: int, stage: str, bit: int, key: int) -> None:
        """Damage on the way down."""
        data = self.server.shown.get((u, stage), b"")
        if data:
            self._send(u, stage, flip(data, bit % (8 * len(data))), key)

    @rule(u=_clients, like=_clients, stage=st.sampled_from(STAGES), key=_keys)
    def message_meant_for_another_client(self, u: int, like: int, stage: str, key: int) -> None:
        """The last message of a stage to somebody else, as it is."""
        if (like, stage) in self.server.shown:
            self._send(u, stage, self.server.shown[like, stage], key)

    @rule(u=_clients, stage=st.sampled_from(STAGES), key=_keys)
    def message_of_another_session(self, u: int, stage: str, key: int) -> None:
        """The same roster, the same identities, another session."""
        if (u, stage) in self.elsewhere:
            reply = self._send(u, stage, self.elsewhere[u, stage], key)
            if self.batch.malicious and stage in {"share_keys", "unmask"}:
                self.checks.that(reply is None, f"{stage} of another session was accepted")

    def _send(self, u: int, stage: str, data: bytes, key: int) -> bytes | None:
        server = self.server
        match stage:
            case "share_keys":
                return server.directory(u, data)
            case "open_bundles":
                return server.deliver(u, data)
            case "masked_input":
                return self._send_request(u, data, task_of(key))
            case "confirm":
                return self._send_survivors(u, data)
            case _:
                return self._send_proof(u, data)

    # Always ------------------------------------------------------------------------------------

    @invariant()
    def always_one_kind_and_one_answer(self) -> None:
        """Neither the gate nor the replay protection was breached."""
        breaches = self.server.attacker.breaches
        self.checks.that(not breaches, "; ".join(breaches))

    @invariant()
    def always_enough_honest_inputs(self) -> None:
        """The attacker's algebra on everything that left."""
        for opened in self.server.attacker.opened() if self.batch.malicious else ():
            honest = opened.members & HONEST
            enough = not honest or len(honest) >= THRESHOLD - POLICY.colluders
            self.checks.that(enough, f"the sum of {sorted(honest)} opens")
            who = some.named(self.batch.roster, opened.totals[some.WHO])
            self.checks.that(who == sorted(opened.members), f"the sum names {who}")


ATTACKS: tuple[Callable[[_LyingServerMachine], None], ...] = (
    lambda machine: machine.corrupt_client_signs_what_it_is_not_in(key=0),
    lambda machine: machine.everybody_is_told_another_survivor_set(order=sorted(HONEST), key=0),
    lambda machine: machine.requests_and_survivor_sets_against_a_rule(u=13, key=0),
    lambda machine: machine.a_whole_step_of_lies(
        key=0, broadcasts=3, first=BATCH.roster, second=BATCH.roster, split=CLIENTS
    ),
)
"""Known attacks, each run once before the search."""
