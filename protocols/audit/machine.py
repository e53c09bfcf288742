"""The properties that the state machine of a lying server checks, and known attacks."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis.stateful import run_state_machine_as_test

from protocols import messages
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome
from protocols.audit.exchange_rules import BATCH, CLIENTS, STEPS, THRESHOLD, parties
from protocols.audit.lying import LyingServer
from protocols.audit.step_rules import HONEST, LyingServerMachine, task_of
from protocols.audit.subject import Subject
from protocols.messages import StepRequest
from protocols.params import BatchParams

# Known attacks. Each is run once, before the search.
ATTACKS: tuple[Callable[[LyingServerMachine], None], ...] = (
    lambda machine: machine.corrupt_client_signs_what_it_is_not_in(key=0),
    lambda machine: machine.everybody_is_told_another_survivor_set(order=sorted(HONEST), key=0),
    lambda machine: machine.requests_and_survivor_sets_against_a_rule(u=13, key=0),
    lambda machine: machine.a_whole_step_of_lies(
        key=0, broadcasts=3, first=BATCH.roster, second=BATCH.roster, split=CLIENTS
    ),
)


def lying_server(examples: int, subject: Subject) -> Outcome:
    """Whatever a lying server with one corrupt client does, no sum of too few honest inputs opens.

    n = 6, t = 4, n_C = 1, malicious. The server shows different directories, deliveries, requests,
    broadcasts, survivor sets and proofs to different clients. It repeats, reorders, delays and
    drops them, flips bits, and replays other steps and another session. Clients restart at any
    time. After every action three things hold: no client gave both kinds of share or two answers
    at one stage; every accepted message keeps the client's rules of SPEC 6.3, 6.4 and 6.8; and the
    reference attacker opens only exact sums of at least t - n_C honest inputs.
    Source: SPEC 1.6, 6.4, 6.7, 6.8, D3; faults w2, w3.
    """
    return _run(examples, subject, BATCH)


def semi_honest_gate(examples: int, subject: Subject) -> Outcome:
    """In the semi-honest model that server gets never both shares, and one answer a stage.

    That model promises nothing about the sums that a lying server opens (SPEC 1.2). The rule of
    one share per peer and the replay protection still hold. Source: SPEC 6.4, 6.7; fault w2.
    """
    honest = some.make_batch(CLIENTS, "semi-honest", steps=STEPS, threshold=THRESHOLD)
    return _run(examples, subject, honest)


def _run(examples: int, subject: Subject, batch: BatchParams) -> Outcome:
    checks, ran = Checks(), 0
    _attacker_works(checks, subject, batch)
    elsewhere = _recorded(subject, batch)

    class Machine(LyingServerMachine):
        def __init__(self) -> None:
            nonlocal ran
            ran += 1
            super().__init__(subject.client, checks, batch, elsewhere)

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
    """Check that the attacker opens the sum of an honest step, and only after its last message.

    This is the control: an attacker that cannot open anything would find every subject safe.
    """
    server = LyingServer(parties(batch), some.seeded_entropy(b"control"), client=subject.client)
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
    """Return what an honest server sent down in another session with the same roster."""
    other = some.make_batch(
        CLIENTS, batch.threat_model, steps=STEPS, threshold=THRESHOLD, session=b"o" * 32
    )
    server = LyingServer(parties(other), some.seeded_entropy(b"other"), client=subject.client)
    request = StepRequest(0, messages.encode_set(other.roster, other.roster))
    for u in other.roster:
        server.request(u, request, task_of(0), some.one_hot(other.roster, u))
    for u in other.roster:
        server.survivors(u, other.roster)
    for u in other.roster if other.malicious else ():
        server.proof(u, other.roster)
    return server.shown
