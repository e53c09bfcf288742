"""The steps of a lying server: any message to any client, in any order, at any time."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from protocols import messages
from protocols.audit import strategies as some
from protocols.audit.exchange_rules import (
    BATCH,
    CLIENTS,
    CORRUPT,
    POLICY,
    STEPS,
    THRESHOLD,
    ExchangeRules,
    any_client,
    any_members,
    any_split,
)
from protocols.messages import ConsistencyProof, StepRequest, SurvivorSet
from protocols.pairs import Pairs
from protocols.params import Task

HONEST = frozenset(BATCH.roster) - {CORRUPT}
STAGES = ("share_keys", "open_bundles", "masked_input", "confirm", "unmask")

_keys = st.integers(0, STEPS - 1)


def task_of(key: int, broadcast: int = 0) -> Task:
    """Return the task of a step. Inputs are one-hot, so the sum names the clients in it."""
    return some.make_task(some.section(some.WHO, CLIENTS, 1), step=key, broadcast=broadcast)


class LyingServerMachine(ExchangeRules):
    """Requests, survivor sets and proofs, and what must always hold (SPEC 6.3 to 6.8)."""

    @rule(u=any_client, request=some.step_requests(BATCH), broadcast=st.integers(0, 1))
    def request_of_any_kind(self, u: int, request: StepRequest, broadcast: int) -> None:
        """Send one client any key step, active set and broadcast."""
        self._request(u, request, broadcast)

    @rule(members=any_members, key=_keys, split=st.integers(0, CLIENTS))
    def same_request_to_all_but_the_broadcast(
        self, members: Sequence[int], key: int, split: int
    ) -> None:
        """Send one active set to all, and to some of them another broadcast."""
        request = StepRequest(key, messages.encode_set(members, self.batch.roster))
        for index, u in enumerate(members):
            self._request(u, request, int(index < split))

    @rule(lost=some.lost_pairs(BATCH), key=_keys)
    def pairs_are_lost_and_the_step_runs(self, lost: Pairs, key: int) -> None:
        """Tell everybody the same lost pairs, and then go as far as clients let the server."""
        roster = self.batch.roster
        for u in roster:
            self._request(u, some.step_request(self.batch, key, roster, lost), 0)
        for u in roster:
            self._send_survivors(u, roster)
        for u in roster if self.batch.malicious else ():
            self._send_proof(u, roster)

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
        """Check that a request which a client answered keeps the rules of SPEC 6.3."""
        active = frozenset(messages.decode_set(request.active, self.batch.roster))
        self.checks.that(len(active) >= THRESHOLD, "an active set below the threshold")
        self.checks.that(u in active, "an active set without the client itself")
        lost = self.server.attacker.lost(u, request)
        self.checks.that(len(active - lost) >= THRESHOLD, "fewer holders left than the threshold")
        self.checks.that(request.key < STEPS, "keys that were never made")
        if before is not None:
            self.checks.that(request.key > before[0].key, "spent keys were used")
            self.checks.that(task.step > before[1].step, "a step number does not grow")
        if self.batch.malicious:
            shrunk = active <= self.cohorts.get(u, active)
            self.checks.that(shrunk, "a client that missed a step is active again")
        self.cohorts[u] = active

    @rule(u=any_client, key=_keys)
    def requests_and_survivor_sets_against_a_rule(self, u: int, key: int) -> None:
        """Send one client requests and survivor sets that each break one rule."""
        others = [v for v in self.batch.roster if v != u]
        for wanted, members in (
            (key, [u, *others[: THRESHOLD - 2]]),
            (key, others),
            (STEPS, self.batch.roster),
            (key, [u, *others[:-1]]),  # this one breaks no rule
        ):
            request = StepRequest(wanted, messages.encode_set(members, self.batch.roster))
            self._request(u, request, 0)
            self.server.restart(u)
        for members in ([u, *others[: THRESHOLD - 2]], others[:-1], self.batch.roster):
            self._send_survivors(u, tuple(members))
            self.server.restart(u)

    @rule(u=any_client, members=any_members)
    def survivor_set_of_any_kind(self, u: int, members: tuple[int, ...]) -> None:
        """Send any U3 to one client."""
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
            left = chosen - self.server.attacker.lost(u, self.server.told[u][0])
            self.checks.that(len(left) >= THRESHOLD, "fewer holders survived than the threshold")
            self.cohorts[u] = chosen
        return reply

    @rule(first=any_members, second=any_members, split=any_split)
    def two_survivor_sets_to_who_can_accept_them(
        self, first: tuple[int, ...], second: tuple[int, ...], split: int
    ) -> None:
        """Equivocate: tell one U3 to some clients and another one to the rest."""
        for index, u in enumerate(self.batch.roster):
            chosen = first if index < split else second
            if u in chosen:
                self._send_survivors(u, chosen)

    @rule(order=st.permutations(sorted(HONEST)), key=_keys)
    def everybody_is_told_another_survivor_set(self, order: list[int], key: int) -> None:
        """Tell every client another U3. Without the consistency round a sum of two would open."""
        self.same_request_to_all_but_the_broadcast(self.batch.roster, key, 0)
        v1, v2, w1, w2, w3 = order
        lies = {w1: {w2, w3}, w2: {w1, w3}, w3: {w1, w2}, v1: {w1, w2}, v2: {w3}}
        told = {u: tuple(sorted(set(self.batch.roster) - gone)) for u, gone in lies.items()}
        for u, members in told.items():
            self._send_survivors(u, members)
        for u, members in told.items() if self.batch.malicious else ():
            self._send_proof(u, members)
            self.forged_proofs(u)

    @rule(like=any_client, members=any_members)
    def corrupt_client_signs_anything(self, like: int, members: tuple[int, ...]) -> None:
        """Let the corrupt client sign any U3."""
        if self.batch.malicious and like in self.server.told:
            self.server.sign_for(CORRUPT, like, members)

    @rule(key=_keys)
    def corrupt_client_signs_what_it_is_not_in(self, key: int) -> None:
        """Let the corrupt client add its signature to a U3 that it is not in."""
        self.same_request_to_all_but_the_broadcast(self.batch.roster, key, 0)
        for u in sorted(HONEST) if self.batch.malicious else ():
            self._send_survivors(u, tuple(sorted(HONEST)))
        for u in sorted(HONEST) if self.batch.malicious else ():
            self.corrupt_client_signs_anything(u, tuple(sorted(HONEST)))
            self._send_proof(u, tuple(sorted(HONEST)))

    @rule(u=any_client, members=any_members)
    def proof_about_any_set(self, u: int, members: tuple[int, ...]) -> None:
        """Send all signatures on a set, whichever set the client signed itself."""
        if self.batch.malicious:
            self._send_proof(u, members)

    @rule(u=any_client)
    def forged_proofs(self, u: int) -> None:
        """Send zeros, another's signature, one too few, and one of a client outside the set."""
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
        """Send every client the signatures on the U3 that it was told."""
        for u, members in list(self.server.told_survivors.items()):
            self._send_proof(u, members)

    @rule(
        key=_keys,
        broadcasts=st.sampled_from([0, 0, 3]),
        first=any_members,
        second=any_members,
        split=any_split,
    )
    def a_whole_step_of_lies(
        self,
        key: int,
        broadcasts: int,
        first: tuple[int, ...],
        second: tuple[int, ...],
        split: int,
    ) -> None:
        """Run a whole step: a random search rarely draws several fitting messages in a row."""
        self.same_request_to_all_but_the_broadcast(self.batch.roster, key, broadcasts)
        self.two_survivor_sets_to_who_can_accept_them(first, second, split)
        for like, members in ((self.batch.roster[1], first), (self.batch.roster[5], second)):
            self.corrupt_client_signs_anything(like, members)
        self.to_everybody_the_proof_of_what_it_was_told()

    # Any time ----------------------------------------------------------------------------------

    @rule(u=any_client)
    def restart(self, u: int) -> None:
        """Restart a client from its stored record."""
        self.server.restart(u)

    @rule(u=any_client, stage=st.sampled_from(STAGES), bit=st.integers(0, 2000), key=_keys)
    def last_message_with_a_flipped_bit(self, u: int, stage: str, bit: int, key: int) -> None:
        """Send the last message of a stage again with one bit flipped."""
        data = self.server.shown.get((u, stage), b"")
        if data:
            self._send(u, stage, some.flip(data, bit % (8 * len(data))), key)

    @rule(u=any_client, like=any_client, stage=st.sampled_from(STAGES), key=_keys)
    def message_meant_for_another_client(self, u: int, like: int, stage: str, key: int) -> None:
        """Send one client's last message of a stage to another client."""
        if (like, stage) in self.server.shown:
            self._send(u, stage, self.server.shown[like, stage], key)

    @rule(u=any_client, stage=st.sampled_from(STAGES), key=_keys)
    def message_of_another_session(self, u: int, stage: str, key: int) -> None:
        """Replay a message of another session with the same roster and identities."""
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
        """Check that no client gave both kinds of share, or two answers at one stage."""
        breaches = self.server.attacker.breaches
        self.checks.that(not breaches, "; ".join(breaches))

    @invariant()
    def always_enough_honest_inputs(self) -> None:
        """Check that every sum that opens has at least t - n_C honest inputs, or none."""
        for opened in self.server.attacker.opened() if self.batch.malicious else ():
            honest = opened.members & HONEST
            enough = not honest or len(honest) >= THRESHOLD - POLICY.colluders
            self.checks.that(enough, f"the sum of {sorted(honest)} opens")
            who = some.named(self.batch.roster, opened.totals[some.WHO])
            self.checks.that(who == sorted(opened.members), f"the sum names {who}")
