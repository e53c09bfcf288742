"""The server's side of one step (SPEC 6.3, 6.4, 6.8).

    CollectingInputs (malicious: -> CollectingSignatures) -> CollectingShares -> Finished

Masked inputs are added as they arrive, so memory holds one running sum and no client's vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from protocols import context, masking, messages, pairs
from protocols.errors import DecodeError, NotEnoughSurvivors, RemoteProtocolError
from protocols.graph import Clients, Graph
from protocols.messages import (
    ConsistencyProof,
    MaskedInput,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.params import BatchParams, Task
from protocols.phases import Phase
from protocols.primitives.keys import Entropy
from protocols.primitives.packing import unpack
from protocols.primitives.shamir import decode_element
from protocols.seeds import Kind
from protocols.server.offline import Arrival, BatchKeys, Group, Replies, check_sender, enough
from protocols.server.recovery import Needed, SeedRecovery

Vectors = tuple[NDArray[np.uint32], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What is fixed for a step when it begins.

    Attributes:
        graph: who masks with whom and who holds whose shares: the batch's, less the lost pairs.
        entropy: draws the coefficients of the common decoding (SPEC 3.7), after the last answer.
    """

    batch: BatchParams
    keys: BatchKeys
    key: int
    task: Task
    active: Clients
    graph: Graph
    on: bytes
    entropy: Entropy | None = field(default=None, repr=False)

    def mask_key(self, client: int) -> bytes:
        """Return a client's public mask key of this step."""
        return self.keys.advertised[client].mask_keys[self.key]


@dataclass(frozen=True, slots=True)
class CollectingInputs:
    """Round 2: the running sum, and the clients whose inputs are in it."""

    step: Step
    received: frozenset[int]
    totals: Vectors = field(repr=False)


@dataclass(frozen=True, slots=True)
class CollectingSignatures:
    """Consistency round: the masked sum over the survivors, and their signatures on that set."""

    step: Step
    survivors: Clients
    totals: Vectors = field(repr=False)
    received: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class CollectingShares:
    """Round 3: the masked sum over the survivors, and the shares that came back.

    Attributes:
        dropped: the active set without U3; these clients sent no masked input.
        responders: who is asked for shares.
        proof: malicious model: the survivors' signatures on the survivor set.
    """

    step: Step
    survivors: Clients
    dropped: Clients
    responders: Clients
    totals: Vectors = field(repr=False)
    received: dict[int, UnmaskShares]
    proof: ConsistencyProof | None = None

    @classmethod
    def of(
        cls,
        step: Step,
        survivors: Clients,
        responders: Clients,
        totals: Vectors,
        proof: ConsistencyProof | None = None,
    ) -> CollectingShares:
        """Return the state before any answer."""
        alive = frozenset(survivors)
        dropped = tuple(u for u in step.active if u not in alive)
        return cls(step, survivors, dropped, responders, totals, {}, proof)


@dataclass(frozen=True, slots=True)
class Finished:
    """The sum of the survivors' inputs.

    Attributes:
        totals: section name -> uint32, shape (length,).
        survivors: the clients whose inputs are in it, ascending.
        wrong: clients whose shares were left out as wrong; the sum is right all the same. Each
            of them changed a share, or was dealt a wrong one, so nobody is barred for it.
        key, on: which key step the sum used, and its context (SPEC 3.2).
        proof: malicious model: the signatures of at least t survivors on the survivor set.
    """

    totals: Mapping[str, NDArray[np.uint32]] = field(repr=False)
    survivors: Clients
    wrong: frozenset[int] = frozenset()
    key: int = 0
    on: bytes = b""
    proof: ConsistencyProof | None = None


Online = CollectingInputs | CollectingSignatures | CollectingShares


# Round 2: masked input -------------------------------------------------------------------------


def request(batch: BatchParams, key: int, members: Clients, lost: pairs.Pairs) -> StepRequest:
    """Return the request of a key step, with the lost pairs among its members (SPEC 6.3)."""
    present = frozenset(members)
    within = (pair for pair in lost if present.issuperset(pair))
    active = messages.encode_set(members, batch.roster)
    return StepRequest(key, active, pairs.encode(within, batch.roster))


def begin(
    batch: BatchParams,
    keys: BatchKeys,
    task: Task,
    request: StepRequest,
    entropy: Entropy | None = None,
) -> CollectingInputs:
    """Start a step with an empty sum."""
    on = context.online(keys.off1, request.key, task, batch.n, request.active, lost=request.lost)
    active = messages.decode_set(request.active, batch.roster)
    graph = keys.graph.without(pairs.decode(request.lost, batch.roster))
    zeros = tuple(np.zeros(section.length, dtype=np.uint32) for section in task.sections)
    step = Step(batch, keys, request.key, task, active, graph, on, entropy)
    return CollectingInputs(step, frozenset(), zeros)


def input_bound(_: BatchParams, state: CollectingInputs) -> bytes:
    """Return the context that masked inputs are signed under."""
    return state.step.on


def receive_input(
    _: BatchParams, state: CollectingInputs, arrival: Arrival[MaskedInput]
) -> CollectingInputs:
    """Add a masked input to the running sum (SPEC 6.3).

    Raises:
        DecodeError: a vector of wrong size, with an element >= p or with padding bits set.
    """
    client = arrival.client
    check_sender(client, state.step.active, state.received, Phase.MASKED_INPUT)
    task, n = state.step.task, state.step.batch.n
    vectors = _unpack_sections(task, n, arrival.message)
    parts = zip(task.fields(n), state.totals, vectors, strict=True)
    totals = tuple(field.add(total, vector) for field, total, vector in parts)
    return CollectingInputs(state.step, state.received | {client}, totals)


def _unpack_sections(task: Task, n: int, message: MaskedInput) -> Vectors:
    if len(message.sections) != len(task.sections):
        raise DecodeError("wrong number of sections")
    vectors = []
    for section, field_, data in zip(task.sections, task.fields(n), message.sections, strict=True):
        vector = unpack(data, field_.bits, section.length)
        if not field_.contains(vector):
            raise DecodeError("a masked element is not in the field")
        vectors.append(vector)
    return tuple(vectors)


def end_inputs(
    _: BatchParams, state: CollectingInputs
) -> tuple[CollectingSignatures | CollectingShares, Replies]:
    """Fix U3, the clients whose inputs are in the sum, and announce it (SPEC 6.3).

    Raises:
        NotEnoughSurvivors: |U3| below the threshold, or too small around one client.
    """
    step = state.step
    survivors = enough_holders(step, state.received, Phase.MASKED_INPUT)
    message = SurvivorSet(messages.encode_set(survivors, step.batch.roster))
    nxt: CollectingSignatures | CollectingShares
    if step.batch.malicious:
        nxt = CollectingSignatures(step, survivors, state.totals, received={})
    else:
        nxt = CollectingShares.of(step, survivors, survivors, state.totals)
    return nxt, dict.fromkeys(survivors, message)


def enough_holders(step: Step, received: Group, phase: Phase) -> Clients:
    """Return the senders in roster order, if they can open what every active client shared.

    Raises:
        NotEnoughSurvivors: they are fewer than the threshold, or than a seed needs holders.
    """
    senders = enough(step.batch, received, phase)
    left, around = step.graph.weakest(step.active, frozenset(senders))
    if left < step.batch.share_threshold:
        raise NotEnoughSurvivors(phase, left, step.batch.share_threshold, around)
    return senders


# Round 3: unmasking ----------------------------------------------------------------------------


def receive_shares(
    _: BatchParams, state: CollectingShares, arrival: Arrival[UnmaskShares]
) -> CollectingShares:
    """Record a survivor's shares (SPEC 6.4).

    Raises:
        RemoteProtocolError: a wrong number of shares.
        DecodeError: a share is not a field element.
    """
    client, message = arrival.client, arrival.message
    check_sender(client, state.responders, state.received, Phase.UNMASKING)
    owners = [state.step.graph.held(client, group) for group in (state.survivors, state.dropped)]
    if [len(message.self_shares), len(message.key_shares)] != [len(group) for group in owners]:
        raise RemoteProtocolError(client, Phase.UNMASKING, "wrong number of shares")
    for share in message.self_shares + message.key_shares:
        decode_element(share)
    state.received[client] = message
    return state


def end_shares(_: BatchParams, state: CollectingShares) -> tuple[Finished, Replies]:
    """Find the seeds, remove every mask, and return the sum (SPEC 6.4).

    Raises:
        NotEnoughSurvivors: fewer answers than the threshold, or too few around one client.
        RemoteProtocolError: the committed seed of a client does not give its advertised key.
        SeedLost: no shares of a client that were tried give the seed that it committed to.
    """
    step = state.step
    enough_holders(step, state.received, Phase.UNMASKING)
    recovery = SeedRecovery(step.batch, step.keys, step.key, step.entropy)
    seeds = recovery.find(chain(*(_by_owner(state, kind) for kind in _ORDER)))
    total = masking.MaskedSum(step.task, step.batch.n, state.totals)
    for survivor in state.survivors:
        key = masking.self_mask_key(seeds[survivor, Kind.SELF_MASK], survivor, step.on)
        total.add(key, -1)
    for dropped in state.dropped:
        _remove_pair_masks(state, total, dropped, seeds[dropped, Kind.MASK_KEY])
    names = [section.name for section in step.task.sections]
    sums = dict(zip(names, total.reduced(), strict=True))
    wrong = recovery.wrong
    return Finished(sums, state.survivors, wrong, step.key, step.on, state.proof), {}


# The order in which seeds are looked for: the first that is not found is named (SPEC 3.7).
_ORDER = Kind.SELF_MASK, Kind.MASK_KEY


def _by_owner(state: CollectingShares, kind: Kind) -> Iterator[Needed]:
    """Yield every client of which this kind of seed is needed, with its shares by holder.

    A holder lists its shares in the order of the owners, so each list is read once, front to back.
    """
    own = kind is Kind.SELF_MASK
    owners = state.survivors if own else state.dropped
    lists = {u: iter(m.self_shares if own else m.key_shares) for u, m in state.received.items()}
    answered = tuple(sorted(lists))
    for owner in owners:
        shares = {u: next(lists[u]) for u in state.step.graph.holders(owner, answered)}
        yield Needed(owner, kind, shares)


def _remove_pair_masks(
    state: CollectingShares, total: masking.MaskedSum, dropped: int, seed: bytes
) -> None:
    """Subtract the masks that the survivors share with a client that dropped out."""
    step = state.step
    pair = masking.mask_key_pair(seed, dropped, step.key, context.offline(step.batch))
    if pair.public != step.mask_key(dropped):
        raise RemoteProtocolError(
            dropped, Phase.UNMASKING, "the committed seed does not give the advertised key"
        )
    near = frozenset(step.graph.neighbours(dropped))
    for survivor in near.intersection(state.survivors):
        public = step.mask_key(survivor)
        key = masking.pair_mask_key(pair, dropped, survivor, public, step.on)
        total.add(key, -masking.pair_sign(survivor, dropped))
