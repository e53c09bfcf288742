"""The server's side of the consistency round, malicious model only (SPEC 6.8)."""

from __future__ import annotations

from dataclasses import replace

from protocols import context, messages
from protocols.graph import Clients
from protocols.messages import Consistency, ConsistencyProof
from protocols.params import BatchParams
from protocols.phases import Phase
from protocols.server.offline import Arrival, Replies, check_sender, enough
from protocols.server.step import CollectingShares, CollectingSignatures, Step, enough_holders


def survivors_bound(batch: BatchParams, state: CollectingSignatures | CollectingShares) -> bytes:
    """Return the context of answers about a survivor set (SPEC 3.11)."""
    return _statement(state.step, state.survivors) if batch.malicious else state.step.on


def _statement(step: Step, survivors: Clients) -> bytes:
    """Return what the survivors sign: this step and this survivor set (SPEC 6.8)."""
    return context.survivors(step.on, messages.encode_set(survivors, step.batch.roster))


def receive_signature(
    _: BatchParams, state: CollectingSignatures, arrival: Arrival[Consistency]
) -> CollectingSignatures:
    """Record a survivor's signature, which the session has checked (SPEC 6.8)."""
    client = arrival.client
    check_sender(client, state.survivors, state.received, Phase.CONSISTENCY)
    return replace(state, received={**state.received, client: arrival.signature or b""})


def end_signatures(_: BatchParams, state: CollectingSignatures) -> tuple[CollectingShares, Replies]:
    """Show the signers each other's signatures; on the chosen graph those of their holders.

    Raises:
        NotEnoughSurvivors: fewer signatures than the threshold, or on the chosen graph too few
            around one client.
    """
    step, graph = state.step, state.step.graph
    proofs: Replies
    if step.batch.chosen is None:
        signers = enough(step.batch, state.received, Phase.CONSISTENCY)
        proof = _proof(state, signers)
        proofs = dict.fromkeys(signers, proof)
    else:
        signers = enough_holders(step, frozenset(state.received), Phase.CONSISTENCY)
        proof = _proof(state, signers)
        proofs = {u: _proof(state, graph.holders(u, signers)) for u in signers}
    return CollectingShares.of(step, state.survivors, signers, state.totals, proof), proofs


def _proof(state: CollectingSignatures, signers: Clients) -> ConsistencyProof:
    bitmap = messages.encode_set(signers, state.step.batch.roster)
    return ConsistencyProof(bitmap, tuple(state.received[u] for u in signers))
