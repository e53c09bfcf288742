"""Durable clients of one batch, of which one dealer may deal wrong shares."""

import hashlib

from secagg_helpers import (
    fixed_entropy,
    make_inputs,
    make_params,
    malicious_params,
    plain_sum,
    signing_keys,
)

from protocols import messages
from protocols.client import offline as client_offline
from protocols.client.durable import DurableClient
from protocols.client.states import HeldShares, KeyShare, Party, SelfShare
from protocols.messages import UnmaskShares
from protocols.params import BatchParams
from protocols.policy import Policy
from protocols.server.consistency import survivors_bound
from protocols.server.session import ServerSession

PARAMS = malicious_params(7, threshold=5)  # clients 10, 13, 16, 19, 22, 25, 28


KEYS = signing_keys(PARAMS.roster)


DEALER, VICTIM = 13, 10


M = 3


BATCH = BatchParams(
    session=PARAMS.session,
    batch=1,
    steps=M,
    roster=PARAMS.roster,
    threshold=5,
    threat_model="malicious",
    identities=PARAMS.identities,
)


def other(share):
    """Another element; changes of single bits can cancel in the interpolation."""
    return b"\0" + hashlib.sha256(share).digest()[1:]


def dealing_wrong(monkeypatch, victims, *, kind="self_mask", key=0):
    """Make the next client that shares deal wrong shares."""
    original = client_offline.split_seeds

    def split(party, seeds, members):
        held = dict(original(party, seeds, members))
        for victim in victims:
            steps = list(held[victim])
            own = {"mask_key": steps[key].mask_key.value, "self_mask": steps[key].self_mask.value}
            own[kind] = other(own[kind])
            steps[key] = HeldShares(KeyShare(own["mask_key"]), SelfShare(own["self_mask"]))
            held[victim] = tuple(steps)
        return held

    monkeypatch.setattr(client_offline, "split_seeds", split)


class Run:
    """Durable clients after an honest exchange but for one dealer."""

    def __init__(self, monkeypatch=None, victims=(), **wrong):
        self.entropy = fixed_entropy()
        self.server = ServerSession(BATCH, entropy=fixed_entropy())
        self.parties = {u: Party(BATCH, u, KEYS[u], Policy(colluders=2)) for u in BATCH.roster}
        self.clients = {u: DurableClient(self.parties[u], self.entropy) for u in BATCH.roster}
        self.records = {}
        keys = self.round(BATCH.roster, lambda u, c: c.advertise_keys())

        def share(u, client):
            if u != DEALER or not victims:
                return client.share_keys(keys[u])
            with monkeypatch.context() as patch:
                dealing_wrong(patch, victims, **wrong)
                return client.share_keys(keys[u])

        deliveries = self.round(keys, share)
        for u, delivery in deliveries.items():
            assert self.clients[u].open_bundles(delivery).message == b""

    def round(self, waiting, answer, change=None):
        for u in waiting:
            reply = answer(u, self.clients[u])
            self.records[u] = reply.record
            data = reply.message
            if change and u in change:
                data = change[u](u, data)
            self.server.receive(u, data)
        return dict(self.server.end_round())

    def upto_unmask(self, step, silent=()):
        task, x = make_params(step=step).task, make_inputs(PARAMS, step)
        requests = self.server.begin_step(task)
        told = self.round(
            [u for u in requests if u not in silent],
            lambda u, c: c.masked_input(requests[u], task, x[u]),
        )
        self.survivors = sorted(told)
        return self.round(told, lambda u, c: c.confirm(told[u]))

    def unmask(self, proofs, change=None):
        self.round(proofs, lambda u, c: c.unmask(proofs[u]), change)
        return {k: v.tolist() for k, v in self.server.result.totals.items()}

    def expected(self, step):
        return plain_sum(make_inputs(PARAMS, step), self.survivors, PARAMS)

    def resigned(self, change):
        """What a client sends that changes its shares and signs the changed message."""

        def changed(u, data):
            bound = survivors_bound(BATCH, self.server._state)
            body = messages.decode(data, messages.Signed, BATCH).body
            message = messages.decode(body, UnmaskShares, BATCH)
            return self.parties[u].wrap(bound, change(message))

        return changed
