"""A lying server on the graph that clients choose (SPEC 1.6, 8.8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from protocols import context, messages
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome
from protocols.audit.lying import LyingServer
from protocols.audit.subject import Subject
from protocols.messages import (
    BundleDelivery,
    ChosenAdvertisement,
    ChosenDirectory,
    ShareBundles,
    StepRequest,
)
from protocols.pairs import Pairs
from protocols.pairs import encode as encode_pairs
from protocols.params import BatchParams, Chosen
from protocols.policy import Policy

CLIENTS = 9
GRAPH = Chosen(7, 6)
"""With 9 clients of which 1 is corrupt, (P) holds whatever the lists are."""


class ChoosingServer(LyingServer):
    """A lying server whose clients choose their neighbours themselves."""

    def exchange_keys(self) -> None:
        """Run the whole offline exchange honestly."""
        for u in self.clients:
            self.advertise(u)
        for u in self.clients:
            self.chosen_directory(u, self.true_choices(u))
        for u in self.clients:
            self.deliver(u, self.true_delivery(u))

    def choices(self, client: int) -> tuple[int, ...]:
        """Return whom a client chose, as it advertised."""
        message = self._advertised(self.advertisements[client])
        if not isinstance(message, ChosenAdvertisement):
            raise TypeError("not a ChosenAdvertisement")
        return messages.decode_set(message.chosen, self.batch.roster)

    def true_choices(self, client: int) -> ChosenDirectory:
        """Return the directory of a client, of all that advertised."""
        own, sent = self.choices(client), self.advertisements
        near = [v for v in sorted(sent) if v != client and (v in own or client in self.choices(v))]
        everybody, peers = (messages.encode_set(group, self.batch.roster) for group in (sent, near))
        return ChosenDirectory(everybody, peers, tuple(sent[v] for v in near))

    def chosen_directory(self, client: int, message: ChosenDirectory) -> bytes | None:
        """Send a ChosenDirectory, and keep the bundles of the reply."""
        data = self._down(client, "share_keys", message)
        reply = self._ask(client, "share_keys", lambda c: c.share_keys(data))
        upload = self._upload(reply)
        if isinstance(upload, ShareBundles):
            near = messages.decode_set(message.neighbours, self.batch.roster)
            listed = dict(zip(near, message.advertisements, strict=True))
            listed[client] = self.advertisements[client]
            off1 = context.listed(context.offline(self.batch), message.members)
            self.attacker.saw_keys(client, off1, listed, upload)
            members = messages.decode_set(message.members, self.batch.roster)
            recipients = [v for v in self.choices(client) if v in members]
            self.bundles[client] = dict(zip(recipients, upload.bundles, strict=True))
        return reply

    def true_delivery(self, client: int, sharers: Iterable[int] | None = None) -> BundleDelivery:
        """Return the bundles of those that chose a client; zeros where a sender made none."""
        there = sorted(self.bundles if sharers is None else sharers)
        empty = bytes(messages.bundle_size(self.batch))
        senders = [u for u in there if u != client and client in self.choices(u)]
        sealed = (self.bundles.get(u, {}).get(client, empty) for u in senders)
        return BundleDelivery(messages.encode_set(there, self.batch.roster), tuple(sealed))

    def _signatures_for(self, client: int, about: Iterable[int]) -> dict[int, bytes]:
        """Return the signatures of the client's holders that it has not lost."""
        known = super()._signatures_for(client, about)
        request = self.told[client][0] if client in self.told else StepRequest(0, b"")
        kept = set(self.choices(client)) - self.attacker.lost(client, request)
        return {u: signature for u, signature in known.items() if u in kept}


def chosen_graph(examples: int, subject: Subject) -> Outcome:
    """On the chosen graph no lie opens a sum of half of the honest clients or fewer.

    n = 9, k = 7, tau = 6, one corrupt client. In one step the server shows clients two requests,
    with other active sets, lost pairs and broadcasts, and survivor sets and proofs as it likes. No
    client gives both kinds of share, and the reference attacker opens only exact sums with more
    than half of all honest clients in them. Source: SPEC 1.6, 6.8, 8.8.
    """
    checks = Checks()
    batch = some.make_batch(CLIENTS, "malicious", steps=1, threshold=6, chosen=GRAPH)
    _attacker_works(checks, batch, subject)

    def check(data: DataObject) -> None:
        corrupt = data.draw(st.sampled_from(batch.roster))
        entropy = some.seeded_entropy(data.draw(some.seeds))
        parties = some.parties(batch, Policy(colluders=1))
        server = ChoosingServer(parties, entropy, [corrupt], subject.client)
        _lie_in_a_step(data, server)
        honest = set(batch.roster) - {corrupt}
        checks.that(not server.attacker.breaches, "; ".join(server.attacker.breaches))
        for opened in server.attacker.opened():
            inside = opened.members & honest
            if inside:
                checks.that(2 * len(inside) > len(honest), f"a sum of {sorted(inside)} opens")
                named = some.named(batch.roster, opened.totals[some.WHO])
                checks.that(set(named) == opened.members, "a sum is not exact")

    return Outcome(some.explore(max(examples // 4, 5), check), checks.made)


def _attacker_works(checks: Checks, batch: BatchParams, subject: Subject) -> None:
    """Check that an honest step opens its sum: else nothing below would be worth much."""
    server = ChoosingServer(
        some.parties(batch), some.seeded_entropy(b"control"), (), subject.client
    )
    roster = batch.roster
    task = some.make_task(some.section(some.WHO, len(roster), 1))
    for u in roster:
        request = StepRequest(0, messages.encode_set(roster, roster))
        server.request(u, request, task, some.one_hot(roster, u))
    for ask in (server.survivors, server.proof):
        for u in roster:
            ask(u, roster)
    opened = [some.named(roster, o.totals[some.WHO]) for o in server.attacker.opened()]
    checks.that(opened == [list(roster)], f"an honest step sums {opened}")


# Most clients must be told the same, or no sum comes out at all.
_mostly_the_first = st.sampled_from((0, 0, 0, 0, 0, 1))


def _lie_in_a_step(data: DataObject, server: ChoosingServer) -> None:
    """Split the clients between two worlds, and tell all of them survivor sets at will."""
    batch, roster = server.batch, server.batch.roster
    worlds = [_request(data, batch, number) for number in range(2)]
    sets: list[tuple[int, ...]] = []
    for _ in range(2):
        gone = data.draw(st.sets(st.sampled_from(roster), max_size=1))
        sets.append(tuple(u for u in roster if u not in gone))
    for u in roster:
        message, number = worlds[data.draw(_mostly_the_first)]
        task = some.make_task(some.section(some.WHO, len(roster), 1), broadcast=number)
        server.request(u, message, task, some.one_hot(roster, u))
    told = {u: sets[data.draw(_mostly_the_first)] for u in roster}
    for u in roster:
        server.survivors(u, told[u])
    for u in roster:
        server.proof(u, told[u])


def _request(data: DataObject, batch: BatchParams, number: int) -> tuple[StepRequest, int]:
    roster = batch.roster
    gone = data.draw(st.sets(st.sampled_from(roster), max_size=1))
    active = [u for u in roster if u not in gone]
    lost: Pairs = data.draw(st.sets(st.sampled_from(_pairs(active)), max_size=3))
    bitmap = messages.encode_set(active, roster)
    return StepRequest(0, bitmap, encode_pairs(lost, roster)), number


def _pairs(clients: Sequence[int]) -> list[tuple[int, int]]:
    return [(u, v) for u in clients for v in clients if u < v]
