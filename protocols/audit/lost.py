"""A property about bundles that do not open: a minority puts nobody out (SPEC 1.6, 6.2)."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from protocols import messages, signing
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome
from protocols.audit.subject import Subject
from protocols.messages import BundleDelivery, BundleReport
from protocols.params import BatchParams
from protocols.server.session import ServerSession

Changed = frozenset[tuple[int, int]]
"""(sender, recipient) of bundles that were changed on their way."""


def lost_pairs(examples: int, subject: Subject) -> Outcome:
    """Up to n_C colluders that damage bundles and accuse others put no honest client out.

    Both ends of a pair lose each other and nobody else. The sum is exactly that of all clients
    that keep t holders, and every honest client is among them.
    Source: SPEC 1.6, 6.2, 6.3.
    """
    checks = Checks()

    def check(data: DataObject) -> None:
        model = data.draw(st.sampled_from(some.MODELS))
        n = data.draw(st.integers(4, 10))
        batch = some.make_batch(n, model, threshold=2 * n // 3 + 1)
        most = 2 * batch.threshold - n - 1
        spare = min(most, n - batch.threshold)  # an honest client can lose this many holders
        bad = data.draw(st.permutations(batch.roster))[:spare]
        pairs = [(c, u) for c in bad for u in batch.roster if u != c]
        sent = data.draw(st.sets(st.sampled_from(pairs))) if pairs else set()
        told = data.draw(st.sets(st.sampled_from(pairs))) if pairs else set()
        found = _run(subject, batch, data.draw(some.seeds), frozenset(sent), frozenset(told))
        honest = set(batch.roster) - set(bad)
        checks.that(honest <= set(found), f"{sorted(bad)} put {sorted(honest - set(found))} out")
        lost = {frozenset(pair) for pair in sent | told}
        stay = set(batch.roster)
        while few := {u for u in stay if _holders(u, stay, lost) < batch.threshold}:
            stay -= few
        checks.that(set(found) == stay, f"the sum names {found}, not {sorted(stay)}")

    return Outcome(some.explore(examples, check), checks.made)


def _holders(client: int, members: set[int], lost: set[frozenset[int]]) -> int:
    return sum(frozenset({client, v}) not in lost for v in members)


def _run(
    subject: Subject, batch: BatchParams, seed: bytes, changed: Changed, accused: Changed
) -> list[int]:
    """Run one step and return whose inputs the sum of one-hot inputs names.

    Args:
        subject: makes the clients.
        batch: of the run.
        seed: of the clients' entropy.
        changed: bundles that do not open.
        accused: (client, whom it reports although the bundle opened).
    """
    entropy, parties = some.seeded_entropy(seed), some.parties(batch)
    clients = {u: subject.client(party, entropy, None) for u, party in parties.items()}
    server, roster = ServerSession(batch), batch.roster
    for u in roster:
        server.receive(u, clients[u].advertise_keys().message)
    directories = server.end_round()
    for u in roster:
        server.receive(u, clients[u].share_keys(directories[u]).message)
    for u, data in server.end_round().items():
        delivery = messages.decode(data, BundleDelivery, batch)
        senders = zip([v for v in roster if v != u], delivery.bundles, strict=True)
        bundles = tuple(bytes(len(b)) if (v, u) in changed else b for v, b in senders)
        clients[u].open_bundles(messages.encode(BundleDelivery(delivery.sharers, bundles)))
        unopened = {v for v, to in changed if to == u} | {v for by, v in accused if by == u}
        if unopened:
            report = BundleReport(messages.encode_set(unopened, roster))
            off1 = server.keys.off1
            server.receive(u, signing.wrap(parties[u].identity, u, off1, report))
    task = some.make_task(some.section(some.WHO, len(roster), 1))
    requests = server.begin_step(task)
    for u, data in requests.items():
        masked = clients[u].masked_input(data, task, some.one_hot(roster, u))
        server.receive(u, masked.message)
    shown = server.end_round()
    if batch.malicious:
        for u, data in shown.items():
            server.receive(u, clients[u].confirm(data).message)
        shown = server.end_round()
    for u, data in shown.items():
        server.receive(u, clients[u].unmask(data).message)
    server.end_round()
    return some.named(roster, server.result.totals[some.WHO])
