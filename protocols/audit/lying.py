"""A server that sends real clients what a script tells it to send."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from protocols import context, messages, signing
from protocols.audit.attacker import ReferenceAttacker
from protocols.client.durable import DurableClient, Reply
from protocols.client.session import ClientSession
from protocols.client.states import Party, Start
from protocols.client.step import Inputs
from protocols.errors import SecAggError
from protocols.graph import neighbourhood
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    Consistency,
    ConsistencyProof,
    KeyDirectory,
    MaskedInput,
    Message,
    Nonce,
    NonceCommitments,
    RingAdvertisement,
    RingDirectory,
    ShareBundles,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
    Upload,
)
from protocols.params import Task
from protocols.primitives.keys import Entropy, KeyPair

ClientFactory = Callable[[Party, Entropy, bytes | None], DurableClient]
"""Makes a client from its party, its entropy, and its stored record (None at first)."""

LOW_ORDER = (bytes(32), b"\1" + bytes(31), bytes.fromhex(
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
))  # fmt: skip
"""Public keys of low order: every X25519 agreement with them is zero, so known to everybody."""


class LyingServer:
    """Real clients, a server that follows a script, and an attacker that sees every reply.

    Every method that sends something returns the reply, or None if the client refused. It catches
    errors of `protocols.errors` only: any other error of a client is a finding. Clients store their
    records and can be restarted at any time. Messages may be given as bytes, broken ones too.

    Args:
        parties: all members of one roster.
        entropy: source of the clients' secrets.
        corrupt: clients whose secrets the attacker knows.
        client: makes the audited clients; None makes a `DurableClient`.
        exchange: whether the constructor runs an honest offline exchange.

    Attributes:
        attacker: gets everything that the clients send.
        advertisements: client -> its Advertisement as sent.
        bundles: sender -> recipient -> sealed bundle.
        told: client -> the last step request that it answered, and the task.
        told_survivors: client -> the survivor set that it signed last.
        signatures: survivor set -> signer -> signature.
        records: client -> what it stored last.
        shown: (client, stage) -> the last message sent down.
    """

    def __init__(
        self,
        parties: Mapping[int, Party],
        entropy: Entropy,
        corrupt: Iterable[int] = (),
        client: ClientFactory | None = None,
        *,
        exchange: bool = True,
    ) -> None:
        self._parties = parties
        self._entropy = entropy
        self._client = client or DurableClient
        self._corrupt = frozenset(corrupt)
        self.batch = next(iter(parties.values())).batch
        self.clients = {u: self._client(party, entropy, None) for u, party in parties.items()}
        self.records: dict[int, bytes] = {}
        self.attacker = ReferenceAttacker(self.batch)
        self.advertisements: dict[int, bytes] = {}
        self.bundles: dict[int, dict[int, bytes]] = {}
        self.told: dict[int, tuple[StepRequest, Task]] = {}
        self.told_survivors: dict[int, tuple[int, ...]] = {}
        self.signatures: dict[tuple[int, ...], dict[int, bytes]] = {}
        self.shown: dict[tuple[int, str], bytes] = {}
        if exchange:
            self.exchange_keys()

    def restart(self, client: int) -> None:
        """Let a client's process die and come back with what it stored last."""
        record = self.records.get(client)
        self.clients[client] = self._client(self._parties[client], self._entropy, record)

    # The offline exchange ----------------------------------------------------------------------

    def exchange_keys(self) -> None:
        """Run the whole offline exchange honestly."""
        for u in self.clients:
            self.advertise(u)
        if self.batch.ring is None:
            for u in self.clients:
                self.directory(u, self.true_directory())
        else:
            self._draw_and_share()
        for u in self.clients:
            self.deliver(u, self.true_delivery(u))

    def advertise(self, client: int) -> bytes | None:
        """Ask for an Advertisement."""
        reply = self._ask(client, "advertise_keys", lambda c: c.advertise_keys())
        if reply is not None:
            self.advertisements[client] = reply
            self._take_over(client)
        return reply

    def directory(self, client: int, message: KeyDirectory | bytes) -> bytes | None:
        """Send a KeyDirectory, and keep the bundles of the reply."""
        data = self._down(client, "share_keys", message)
        reply = self._ask(client, "share_keys", lambda c: c.share_keys(data))
        upload = self._upload(reply)
        if isinstance(upload, ShareBundles):
            shown = messages.decode(data, KeyDirectory, self.batch)
            self.attacker.saw_directory(client, shown, upload)
            peers = messages.decode_set(shown.members, self.batch.roster)
            recipients = [u for u in peers if u != client]
            self.bundles[client] = dict(zip(recipients, upload.bundles, strict=True))
        return reply

    def _draw_and_share(self) -> None:
        """Draw the ring and show all clients their neighbours' keys, honestly (SPEC 6.9)."""
        sent = {u: self._advertised(data) for u, data in sorted(self.advertisements.items())}
        rings = {u: keys for u, keys in sent.items() if isinstance(keys, RingAdvertisement)}
        committed = {u: keys.nonce_commitment for u, keys in rings.items()}
        members = messages.encode_set(committed, self.batch.roster)
        listed = NonceCommitments(members, tuple(committed.values()))
        nonces = {u: self.draw(u, listed) for u in committed}
        off1 = context.drawn(context.offline(self.batch), committed, nonces)
        for u in nonces:
            near = neighbourhood(self.batch, u, tuple(nonces), off1)
            keys = tuple(self.advertisements[v] for v in near)
            self.ring_directory(u, RingDirectory(members, tuple(nonces.values()), keys), off1, near)

    def draw(self, client: int, message: NonceCommitments | bytes) -> bytes:
        """Send NonceCommitments; return the nonce, b"" if the client refused."""
        data = self._down(client, "draw_graph", message)
        upload = self._upload(self._ask(client, "draw_graph", lambda c: c.draw_graph(data)))
        return upload.nonce if isinstance(upload, Nonce) else b""

    def ring_directory(
        self, client: int, message: RingDirectory | bytes, off1: bytes, near: tuple[int, ...]
    ) -> bytes | None:
        """Send a RingDirectory to a client that will find this off1 and these neighbours."""
        data = self._down(client, "share_keys", message)
        reply = self._ask(client, "share_keys", lambda c: c.share_keys(data))
        upload = self._upload(reply)
        if isinstance(upload, ShareBundles):
            shown = messages.decode(data, RingDirectory, self.batch).advertisements
            listed = {client: self.advertisements[client], **dict(zip(near, shown, strict=True))}
            self.attacker.saw_keys(client, off1, listed, upload)
            self.bundles[client] = dict(zip(near, upload.bundles, strict=True))
        return reply

    def deliver(self, client: int, message: BundleDelivery | bytes) -> bytes | None:
        """Send a BundleDelivery; return the BundleReport, b"" if there is none."""
        data = self._down(client, "open_bundles", message)
        reply = self._ask(client, "open_bundles", lambda c: c.open_bundles(data))
        if reply is not None:
            self._take_over(client)
        return reply

    def true_directory(self, members: Iterable[int] | None = None) -> KeyDirectory:
        """Return the directory of what was advertised, by all clients or by some."""
        chosen = sorted(self.advertisements if members is None else members)
        listed = tuple(self.advertisements[u] for u in chosen)
        return KeyDirectory(messages.encode_set(chosen, self.batch.roster), listed)

    def true_delivery(self, client: int, sharers: Iterable[int] | None = None) -> BundleDelivery:
        """Return the bundles for a client; zeros where a sender made none."""
        chosen = sorted(self.bundles if sharers is None else sharers)
        empty = bytes(messages.bundle_size(self.batch))
        near = [u for u in chosen if u != client]
        if self.batch.ring is not None:
            near = [u for u in near if u in self.bundles[client]]
        sealed = (self.bundles.get(u, {}).get(client, empty) for u in near)
        return BundleDelivery(messages.encode_set(chosen, self.batch.roster), tuple(sealed))

    def second_advertisement(self, client: int, entropy: Entropy) -> bytes:
        """Make second keys of a corrupt client, well signed, to be shown to some of the others."""
        second = ClientSession.resume(self._parties[client], Start(), entropy)
        sent = second.advertise_keys()
        self.attacker.corrupt(client, second.state)
        return sent

    def false_directories(self, client: int) -> Iterator[tuple[str, KeyDirectory]]:
        """Yield directories that no client may accept, each with a name (fault w3).

        With keys of its own in place of a peer's, a server could open that peer's shares or masks.
        """
        true = self.true_directory()
        members = messages.decode_set(true.members, self.batch.roster)
        listed = dict(zip(members, true.advertisements, strict=True))
        peer, other = [u for u in members if u not in {client, *self._corrupt}][:2]
        mine, theirs = (self._advertised(listed[u]) for u in (client, peer))
        invented = KeyPair.from_private_bytes(b"i" * 32).public
        yield "own advertisement left out", self.true_directory(set(members) - {client})
        yield "own keys replaced", self._with(listed, client, theirs)
        yield "own keys echoed as a peer's", self._with(listed, peer, mine)
        replace = msgspec.structs.replace
        swapped_keys = (theirs.channel_key, *theirs.mask_keys[1:])
        for name, changed in (
            ("channel key replaced by the server's", replace(theirs, channel_key=invented)),
            ("commitment replaced", replace(theirs, commitment=bytes(32))),
            (
                "channel and mask key swapped",
                replace(theirs, channel_key=theirs.mask_keys[0], mask_keys=swapped_keys),
            ),
            *(
                (f"low order {low.hex()[:4]}", replace(theirs, channel_key=low))
                for low in LOW_ORDER
            ),
        ):
            yield name, self._with(listed, peer, changed)
        swapped = listed | {peer: listed[other], other: listed[peer]}
        yield "two peers swapped", KeyDirectory(true.members, tuple(swapped.values()))
        copied = listed | {peer: listed[other]}
        yield "a peer twice", KeyDirectory(true.members, tuple(copied.values()))
        yield "too few", self.true_directory(members[: self.batch.threshold - 1])
        yield "one entry less than members", KeyDirectory(true.members, true.advertisements[:-1])

    # Steps -------------------------------------------------------------------------------------

    def request(
        self, client: int, message: StepRequest | bytes, task: Task, inputs: Inputs
    ) -> bytes | None:
        """Send a StepRequest; the attacker gets the masked input."""
        data = self._down(client, "masked_input", message)
        reply = self._ask(client, None, lambda c: c.masked_input(data, task, inputs))
        upload = self._upload(reply, task)
        if isinstance(upload, MaskedInput):
            request = messages.decode(data, StepRequest, self.batch)
            self.told[client] = request, task
            self.attacker.answered(client, f"masked input {upload.key}", reply or b"")
            self.attacker.saw_input(client, request, task, upload)
        return reply

    def survivors(self, client: int, members: Iterable[int] | bytes) -> bytes | None:
        """Send a SurvivorSet; the attacker gets shares (semi-honest) or a signature."""
        data = members if isinstance(members, bytes) else self._survivor_set(members)
        self.shown[client, "confirm"] = data
        if not self.batch.malicious:
            return self._unmask(client, data)
        reply = self._ask(client, None, lambda c: c.confirm(data))
        upload = self._upload(reply)
        if reply is not None and isinstance(upload, Consistency):
            chosen = self._named(data)
            self.told_survivors[client] = chosen
            self.attacker.answered(client, f"consistency {upload.key}", reply)
            signature = signing.unwrap(reply, self.batch)[2]
            self.signatures.setdefault(chosen, {})[client] = signature or b""
        return reply

    def sign_for(self, client: int, like: int, members: Iterable[int]) -> None:
        """Sign a survivor set in the name of a corrupt client, for the step that `like` is in."""
        chosen, (request, task) = tuple(sorted(members)), self.told[like]
        bitmap = messages.encode_set(chosen, self.batch.roster)
        bound = context.survivors(self.attacker.online(like, request, task), bitmap)
        wrapped = self._parties[client].wrap(bound, Consistency(request.key))
        signature = signing.unwrap(wrapped, self.batch)[2]
        self.signatures.setdefault(chosen, {})[client] = signature or b""

    def proof(self, client: int, about: Iterable[int] | bytes) -> bytes | None:
        """Send the signatures that exist on a survivor set; the attacker gets the shares."""
        data = about if isinstance(about, bytes) else self._proof_of(client, about)
        return self._unmask(client, data)

    def _survivor_set(self, members: Iterable[int]) -> bytes:
        return messages.encode(SurvivorSet(messages.encode_set(tuple(members), self.batch.roster)))

    def _named(self, data: bytes) -> tuple[int, ...]:
        bitmap = messages.decode(data, SurvivorSet, self.batch).survivors
        return messages.decode_set(bitmap, self.batch.roster)

    def _proof_of(self, client: int, about: Iterable[int]) -> bytes:
        known = self._signatures_for(client, about)
        signers = messages.encode_set(known, self.batch.roster)
        return messages.encode(ConsistencyProof(signers, tuple(known.values())))

    def _signatures_for(self, _client: int, about: Iterable[int]) -> dict[int, bytes]:
        return dict(sorted(self.signatures.get(tuple(sorted(about)), {}).items()))

    def _unmask(self, client: int, data: bytes) -> bytes | None:
        self.shown[client, "unmask"] = data
        reply = self._ask(client, None, lambda c: c.unmask(data))
        upload = self._upload(reply)
        if isinstance(upload, UnmaskShares):
            alive = self.told_survivors[client] if self.batch.malicious else self._named(data)
            self.attacker.answered(client, f"shares {upload.key}", reply or b"")
            self.attacker.saw_shares(client, self.told[client][0], alive, upload)
        return reply

    def _down(self, client: int, stage: str, message: Message | bytes) -> bytes:
        data = message if isinstance(message, bytes) else messages.encode(message)
        self.shown[client, stage] = data
        return data

    def _ask(
        self, client: int, stage: str | None, step: Callable[[DurableClient], Reply]
    ) -> bytes | None:
        try:
            reply = step(self.clients[client])
        except SecAggError:
            return None
        self.records[client] = reply.record
        if stage is not None:
            self.attacker.answered(client, stage, reply.message)
        return reply.message

    def _take_over(self, client: int) -> None:
        if client in self._corrupt:
            self.attacker.corrupt(client, self.clients[client].state)

    def _upload(self, reply: bytes | None, *tasks: Task) -> Upload | None:
        return None if not reply else signing.unwrap(reply, self.batch, *tasks)[0]

    def _advertised(self, data: bytes) -> Advertisement:
        message = signing.unwrap(data, self.batch)[0]
        if not isinstance(message, Advertisement):
            raise TypeError("not an Advertisement")
        return message

    def _with(
        self, listed: Mapping[int, bytes], client: int, message: Advertisement
    ) -> KeyDirectory:
        """Return a directory with one advertisement replaced, under its old signature if signed."""
        data = messages.encode(message)
        if self.batch.malicious:
            signed = messages.decode(listed[client], messages.Signed, self.batch)
            data = messages.encode(messages.Signed(data, signed.signature))
        changed = {**listed, client: data}
        members = messages.encode_set(changed, self.batch.roster)
        return KeyDirectory(members, tuple(changed.values()))
