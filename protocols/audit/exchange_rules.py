"""The offline exchange with a lying server: the first half of the machine in `step_rules`."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from protocols import messages
from protocols.audit import strategies as some
from protocols.audit.checks import Checks
from protocols.audit.lying import ClientFactory, LyingServer
from protocols.client.states import Party
from protocols.messages import BundleDelivery, KeyDirectory
from protocols.params import BatchParams
from protocols.policy import Policy

# The policy's bounds hold tightly: 2t = 8 > n + n_C = 7, so one more colluder would break the proof
# of SPEC 1.6. Small numbers let the search reach sums of few clients.
CLIENTS, THRESHOLD, STEPS = 6, 4, 2
CORRUPT = 10
BATCH = some.make_batch(CLIENTS, "malicious", steps=STEPS, threshold=THRESHOLD)
POLICY = Policy(colluders=1)

any_client = st.sampled_from(BATCH.roster)
any_members = some.member_sets(BATCH)
# The place in the roster from which the server tells another story; CLIENTS is nowhere.
any_split = st.sampled_from([CLIENTS, CLIENTS, 3, 4])


def parties(batch: BatchParams) -> dict[int, Party]:
    """Return all members of a batch, under `POLICY` in the malicious model."""
    return some.parties(batch, POLICY if batch.malicious else None)


class ExchangeRules(RuleBasedStateMachine):
    """Rounds 0 and 1: directories, deliveries and restarts (SPEC 6.1, 6.2)."""

    def __init__(
        self,
        client: ClientFactory,
        checks: Checks,
        batch: BatchParams,
        elsewhere: dict[tuple[int, str], bytes],
    ) -> None:
        super().__init__()
        self.checks, self.batch, self.elsewhere = checks, batch, elsewhere
        self.cohorts: dict[int, frozenset[int]] = {}
        entropy = some.seeded_entropy(b"machine")
        self.server = LyingServer(parties(batch), entropy, [CORRUPT], client, exchange=False)

    # Offline -----------------------------------------------------------------------------------

    @initialize(
        split=any_split,
        other=st.sampled_from(["fewer", "second keys"]),
        restarts=st.sets(any_client, max_size=2),
        tampered=st.dictionaries(st.tuples(any_client, any_client), st.integers(0, 9), max_size=2),
        lied_to=st.none() | any_client,
    )
    def offline_exchange(
        self,
        split: int,
        other: str,
        restarts: set[int],
        tampered: dict[tuple[int, int], int],
        lied_to: int | None,
    ) -> None:
        """Run the exchange, with two directories, tampered bundles and restarts if drawn."""
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
                return  # in the semi-honest model keys are taken as received (SPEC 1.2)
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
            some.flip(data, tampered[u, client]) if (u, client) in tampered else data
            for u, data in zip(senders, true.bundles, strict=True)
        ]
        return BundleDelivery(true.sharers, tuple(bundles))

    @rule(u=any_client, members=any_members)
    def late_or_repeated_directory(self, u: int, members: tuple[int, ...]) -> None:
        """Send round 0 again, to a client in any state."""
        self.server.directory(u, self.server.true_directory(members))

    @rule(u=any_client, members=any_members)
    def late_or_repeated_delivery(self, u: int, members: tuple[int, ...]) -> None:
        """Send round 1 again, with other sharers."""
        self.server.deliver(u, self.server.true_delivery(u, members))

    @rule(u=any_client)
    def advertise_again(self, u: int) -> None:
        """Ask for the advertisement again."""
        self.server.advertise(u)
