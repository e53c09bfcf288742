"""Durable clients and a server in the malicious model, step by step."""

from secagg_helpers import (
    fixed_entropy,
    make_inputs,
    make_params,
    malicious_params,
    signing_keys,
)

from protocols import messages
from protocols.client.durable import DurableClient
from protocols.client.states import Party
from protocols.params import BatchParams
from protocols.policy import Policy
from protocols.server.session import ServerSession
from protocols.signing import Credentials

ME = 13


M = 3


PARAMS = malicious_params(5)  # clients 10, 13, 16, 19, 22; threshold 4


TRUST = Credentials(signing_keys(PARAMS.roster))


BATCH = BatchParams(
    session=PARAMS.session,
    batch=1,
    steps=M,
    roster=PARAMS.roster,
    threshold=PARAMS.threshold,
    threat_model="malicious",
    identities=PARAMS.identities,
)


def bitmap(*members: int) -> bytes:
    return messages.encode_set(members, PARAMS.roster)


FULL = bitmap(*PARAMS.roster)


def party(u: int, **policy) -> Party:
    return Party(BATCH, u, TRUST.keys[u], Policy(**policy))


class Run:
    """Five durable clients and a server; what is sent can be read and changed in between."""

    def __init__(self, **policy) -> None:
        self.server = ServerSession(BATCH, rejoin=policy.get("rejoin"))
        entropy = fixed_entropy()
        self.clients = {u: DurableClient(party(u, **policy), entropy) for u in BATCH.roster}
        keys = self.collect(lambda u, c: c.advertise_keys(), BATCH.roster)
        self.directory = keys
        self.deliveries = self.collect(lambda u, c: c.share_keys(keys[u]), keys)
        for u, delivery in self.deliveries.items():
            assert self.clients[u].open_bundles(delivery).message == b""

    def task(self, step: int):
        return make_params(step=step).task

    def collect(self, answer, waiting) -> dict[int, bytes]:
        self.sent = {u: answer(u, self.clients[u]).message for u in waiting}
        for u, data in self.sent.items():
            self.server.receive(u, data)
        return dict(self.server.end_round())

    def inputs(self, step: int = 0, silent=()) -> dict[int, bytes]:
        task = self.task(step)
        x = make_inputs(PARAMS, step)
        self.requests = self.server.begin_step(task)
        senders = [u for u in self.requests if u not in silent]
        return self.collect(lambda u, c: c.masked_input(self.requests[u], task, x[u]), senders)

    def signatures(self, survivors) -> dict[int, bytes]:
        return self.collect(lambda u, c: c.confirm(survivors[u]), survivors)

    def shares(self, proofs) -> None:
        self.collect(lambda u, c: c.unmask(proofs[u]), proofs)
