"""For audits: a server that says what a script tells it to, and an attacker that does the algebra.

`LyingServer` drives real clients with requests of the caller's choice: any key step, active set,
task, survivor set or proof, to each client another one, again and out of order. Whatever comes
back goes to a `ReferenceAttacker`, which knows all shares that ever left, and everything that
corrupt clients hold, and finds every sum that these open. An audit states which sums may open.

`step_requests` and `member_sets` are Hypothesis strategies (extra `audit`); nothing else in this
package needs Hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protocols import context, masking, messages, signing
from protocols.errors import CryptoError, SecAggError
from protocols.keys import Entropy
from protocols.ledger import DurableClient, Reply
from protocols.messages import (
    Consistency,
    ConsistencyProof,
    MaskedInput,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
    Upload,
)
from protocols.packing import unpack
from protocols.params import BatchParams, Task
from protocols.preprocessing import Party, Prepared, Stock, share_points
from protocols.seeds import Kind, SeedSlot
from protocols.server import ServerSession

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Inputs = Mapping[str, NDArray[np.unsignedinteger]]


@dataclass(frozen=True, slots=True)
class Sent:
    """A masked input that left a client, and what that client took the step to be."""

    client: int
    key: int
    task: Task
    active: tuple[int, ...]
    vectors: tuple[NDArray[np.uint32], ...] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Opened:
    """A sum that the attacker could compute.

    Attributes:
        members: whose inputs are in it.
        totals: section name -> uint32, the sum mod p.
    """

    members: frozenset[int]
    totals: dict[str, NDArray[np.uint32]]


class ReferenceAttacker:
    """Everything the server ever saw, and the unmask algebra on all of it.

    Attributes:
        given: (holder, key step, owner) -> kinds of shares that left; two of them are a breach.
        answers: (client, key step) -> masked inputs that left; two of them are a breach.

    Args:
        batch: public.
        stock: public keys and commitments of U2.
    """

    def __init__(self, batch: BatchParams, stock: Stock) -> None:
        self._batch = batch
        self._stock = stock
        self._points = share_points(batch.roster)
        self._sent: list[Sent] = []
        self._shares: dict[tuple[int, int, Kind], dict[int, bytes]] = {}
        self._seeds: dict[tuple[int, int, Kind], bytes] = {}
        self.given: dict[tuple[int, int, int], set[Kind]] = {}
        self.answers: dict[tuple[int, int], set[bytes]] = {}

    def corrupt(self, client: int, state: Prepared) -> None:
        """Take over a client: its own seeds, and every share that it holds."""
        for key, keys in state.unused.items():
            self._seeds[client, key, Kind.MASK_KEY] = keys.seeds.mask_key
            self._seeds[client, key, Kind.SELF_MASK] = keys.seeds.self_mask
            for peer, held in keys.held.items():
                self._learn(client, peer, key, Kind.MASK_KEY, held.mask_key.value)
                self._learn(client, peer, key, Kind.SELF_MASK, held.self_mask.value)

    def saw_input(self, client: int, request: StepRequest, task: Task, sent: MaskedInput) -> None:
        """Take in a masked input."""
        parts = zip(task.sections, task.fields(self._batch.n), sent.sections, strict=True)
        vectors = tuple(unpack(data, f.bits, section.length) for section, f, data in parts)
        active = messages.decode_set(request.active, self._batch.roster)
        self._sent.append(Sent(client, sent.key, task, active, vectors))
        self.answers.setdefault((client, sent.key), set()).add(messages.encode(sent))

    def saw_shares(
        self, client: int, active: Iterable[int], survivors: Iterable[int], sent: UnmaskShares
    ) -> None:
        """Take in the shares of a client, as an answer to what it was told."""
        alive = tuple(survivors)
        dropped = tuple(u for u in active if u not in alive)
        for kind, peers, shares in (
            (Kind.SELF_MASK, alive, sent.self_shares),
            (Kind.MASK_KEY, dropped, sent.key_shares),
        ):
            owners = self._stock.graph.held(client, peers)
            for peer, share in zip(owners, shares, strict=True):
                self._learn(client, peer, sent.key, kind, share)
                self.given.setdefault((client, sent.key, peer), set()).add(kind)

    def opened(self) -> list[Opened]:
        """Every sum that can be computed now and that no smaller one is part of."""
        groups: dict[tuple[int, bytes], list[Sent]] = {}
        for sent in self._sent:
            groups.setdefault((sent.key, self._on(sent)), []).append(sent)
        return [
            self._sum(part, on)
            for (_, on), group in groups.items()
            for part in self._linked(group)
            if self._closed(part)
        ]

    def known_seed(self, client: int, key: int, kind: Kind) -> bytes | None:
        """A seed, if it is a corrupt client's or enough right shares of it are known."""
        if (client, key, kind) in self._seeds:
            return self._seeds[client, key, kind]
        shares = self._shares.get((client, key, kind), {})
        slot = SeedSlot(context.offline(self._batch), client, key, kind)
        commitment = self._stock.commitment(client, key, kind)
        try:
            return slot.recover(shares, self._batch.share_threshold, commitment)[0]
        except CryptoError:
            return None

    def online(self, request: StepRequest, task: Task) -> bytes:
        """The online context of a client that was told this."""
        return context.online(self._stock.off1, request.key, task, self._batch.n, request.active)

    def _learn(self, holder: int, owner: int, key: int, kind: Kind, share: bytes) -> None:
        self._shares.setdefault((owner, key, kind), {})[self._points[holder]] = share

    def _on(self, sent: Sent) -> bytes:
        active = messages.encode_set(sent.active, self._batch.roster)
        return self.online(StepRequest(sent.key, active), sent.task)

    def _peers(self, sent: Sent) -> set[int]:
        """The active neighbours of a sender."""
        return set(sent.active).intersection(self._stock.graph.neighbours(sent.client))

    def _hidden_peers(self, sent: Sent) -> set[int]:
        """The peers whose common mask with the sender cannot be computed."""
        if self.known_seed(sent.client, sent.key, Kind.MASK_KEY) is not None:
            return set()
        return {v for v in self._peers(sent) if self.known_seed(v, sent.key, Kind.MASK_KEY) is None}

    def _linked(self, group: list[Sent]) -> list[list[Sent]]:
        """Parts of a group that hidden masks tie together."""
        by_client = {sent.client: sent for sent in group}
        left, parts = set(by_client), []
        while left:
            part, todo = [], [left.pop()]
            while todo:
                sent = by_client[todo.pop()]
                part.append(sent)
                linked = self._hidden_peers(sent) & left
                left -= linked
                todo.extend(linked)
            parts.append(part)
        return parts

    def _closed(self, part: list[Sent]) -> bool:
        """Whether all hidden masks cancel within the part, and all self masks are known."""
        members = {sent.client for sent in part}
        return all(
            self._hidden_peers(sent) <= members
            and self.known_seed(sent.client, sent.key, Kind.SELF_MASK) is not None
            for sent in part
        )

    def _sum(self, part: list[Sent], on: bytes) -> Opened:
        task, n = part[0].task, self._batch.n
        columns = zip(*(sent.vectors for sent in part), strict=True)
        sums = [np.asarray(np.sum(column, axis=0, dtype=np.uint64)) for column in columns]
        total = masking.MaskedSum(task, n, sums)
        for sent in part:
            seed = self.known_seed(sent.client, sent.key, Kind.SELF_MASK)
            if seed is not None:
                total.add(masking.self_mask_key(seed, sent.client, on), -1)
            for peer in self._peers(sent) - self._hidden_peers(sent):
                total.add(self._pair_key(sent, peer, on), -masking.pair_sign(sent.client, peer))
        names = [section.name for section in task.sections]
        totals = dict(zip(names, total.reduced(), strict=True))
        return Opened(frozenset(sent.client for sent in part), totals)

    def _pair_key(self, sent: Sent, peer: int, on: bytes) -> bytes:
        off0, key = context.offline(self._batch), sent.key
        for owner, other in ((sent.client, peer), (peer, sent.client)):
            seed = self.known_seed(owner, key, Kind.MASK_KEY)
            if seed is not None:
                pair = masking.mask_key_pair(seed, owner, key, off0)
                public = self._stock.advertised[other].mask_keys[key]
                return masking.pair_mask_key(pair, owner, other, public, on)
        raise CryptoError("neither seed is known")


class LyingServer:
    """Real clients after an honest offline exchange, and a server that follows a script.

    Requests give the reply, or None if the client refused. Clients store what they must and can be
    restarted from it at any time.

    Args:
        parties: all members of one roster.
        entropy: source of the clients' secrets.
        corrupt: clients whose secrets the attacker has.
        wrap: makes the audited client from a party and what it stored; a `DurableClient` if None.

    Attributes:
        attacker: has seen everything that the clients sent.
        told: client -> the last step request that it answered, with the task.
        told_survivors: client -> the survivor set that it signed last.
        signatures: survivor set -> signer -> signature.
    """

    def __init__(
        self,
        parties: Mapping[int, Party],
        entropy: Entropy,
        corrupt: Iterable[int] = (),
        wrap: Callable[[Party, Entropy, bytes | None], DurableClient] | None = None,
    ) -> None:
        self._parties = parties
        self._entropy = entropy
        self._wrap = wrap or DurableClient
        self.batch = next(iter(parties.values())).batch
        self.clients = {u: self._wrap(party, entropy, None) for u, party in parties.items()}
        self._records: dict[int, bytes] = {}
        self.attacker = ReferenceAttacker(self.batch, self._exchange_keys())
        for u in corrupt:
            state = self.clients[u].state
            if isinstance(state, Prepared):
                self.attacker.corrupt(u, state)
        self.told: dict[int, tuple[StepRequest, Task]] = {}
        self.told_survivors: dict[int, tuple[int, ...]] = {}
        self.signatures: dict[tuple[int, ...], dict[int, bytes]] = {}

    def restart(self, client: int) -> None:
        """Let a client's process die and come back with what it stored last."""
        party = self._parties[client]
        self.clients[client] = self._wrap(party, self._entropy, self._records[client])

    def request(
        self, client: int, request: StepRequest, task: Task, inputs: Inputs
    ) -> bytes | None:
        """Send a StepRequest; gives the masked input to the attacker."""
        data = messages.encode(request)
        reply = self._ask(client, lambda c: c.masked_input(data, task, inputs))
        upload = self._upload(reply, task)
        if isinstance(upload, MaskedInput):
            self.told[client] = request, task
            self.attacker.saw_input(client, request, task, upload)
        return reply

    def survivors(self, client: int, members: Iterable[int]) -> bytes | None:
        """Send a SurvivorSet; gives shares (semi-honest) or a signature to the attacker."""
        chosen = tuple(sorted(members))
        data = messages.encode(SurvivorSet(messages.encode_set(chosen, self.batch.roster)))
        if not self.batch.malicious:
            return self._unmask(client, data, chosen)
        reply = self._ask(client, lambda c: c.confirm(data))
        if reply is not None:
            self.told_survivors[client] = chosen
            signature = signing.unwrap(reply, self.batch)[2]
            self.signatures.setdefault(chosen, {})[client] = signature or b""
        return reply

    def sign_for(self, client: int, like: int, members: Iterable[int]) -> None:
        """Sign a survivor set in a corrupt client's name, for the step that `like` is in."""
        chosen, (request, task) = tuple(sorted(members)), self.told[like]
        bitmap = messages.encode_set(chosen, self.batch.roster)
        bound = context.survivors(self.attacker.online(request, task), bitmap)
        wrapped = self._parties[client].wrap(bound, Consistency(request.key))
        signature = signing.unwrap(wrapped, self.batch)[2]
        self.signatures.setdefault(chosen, {})[client] = signature or b""

    def proof(self, client: int, about: Iterable[int]) -> bytes | None:
        """Send all signatures that exist on a survivor set; gives shares to the attacker."""
        known = dict(sorted(self.signatures.get(tuple(sorted(about)), {}).items()))
        signers = messages.encode_set(known, self.batch.roster)
        data = messages.encode(ConsistencyProof(signers, tuple(known.values())))
        return self._unmask(client, data, self.told_survivors.get(client, ()))

    def _exchange_keys(self) -> Stock:
        server = ServerSession(self.batch)
        for u, client in self.clients.items():
            server.receive(u, client.advertise_keys().message)
        if self.batch.ring is not None:
            for u, commitments in server.end_round().items():
                server.receive(u, self.clients[u].draw_graph(commitments).message)
        for u, directory in server.end_round().items():
            server.receive(u, self.clients[u].share_keys(directory).message)
        for u, delivery in server.end_round().items():
            self._records[u] = self.clients[u].open_bundles(delivery).record
        return server.stock

    def _unmask(self, client: int, data: bytes, survivors: tuple[int, ...]) -> bytes | None:
        reply = self._ask(client, lambda c: c.unmask(data))
        upload = self._upload(reply)
        if isinstance(upload, UnmaskShares):
            active = messages.decode_set(self.told[client][0].active, self.batch.roster)
            self.attacker.saw_shares(client, active, survivors, upload)
        return reply

    def _ask(self, client: int, step: Callable[[DurableClient], Reply]) -> bytes | None:
        try:
            reply = step(self.clients[client])
        except SecAggError:
            return None
        self._records[client] = reply.record
        return reply.message

    def _upload(self, reply: bytes | None, *tasks: Task) -> Upload | None:
        return None if not reply else signing.unwrap(reply, self.batch, *tasks)[0]


def member_sets(batch: BatchParams) -> SearchStrategy[tuple[int, ...]]:
    """Sets of clients that a server may name, mostly large enough to pass."""
    from hypothesis import strategies as st  # noqa: PLC0415 - only audits have it installed

    sizes = st.sampled_from([batch.threshold, batch.threshold, batch.n, batch.threshold - 1])
    return sizes.flatmap(
        lambda size: st.permutations(batch.roster).map(lambda ids: tuple(sorted(ids[:size])))
    )


def step_requests(batch: BatchParams) -> SearchStrategy[StepRequest]:
    """Requests of any key step and active set."""
    from hypothesis import strategies as st  # noqa: PLC0415 - only audits have it installed

    return st.builds(
        lambda key, members: StepRequest(key, messages.encode_set(members, batch.roster)),
        st.integers(0, batch.steps),
        member_sets(batch),
    )
