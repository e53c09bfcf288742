"""The client of one batch: the table of its transitions, and the session that runs it (SPEC 6).

`TRANSITIONS` lists every call that a client answers. `ClientSession` looks each call up there,
carries bytes in and out, and gives up what a call is about to use before it runs it. SPEC 6.10
shows the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from protocols import messages
from protocols.client import offline, step
from protocols.client.states import (
    Advertised,
    Confirmed,
    Drawn,
    Ended,
    Failed,
    Masked,
    Move,
    Party,
    Prepared,
    Running,
    Shared,
    Start,
    State,
)
from protocols.client.step import Compute, Inputs
from protocols.errors import LocalProtocolError
from protocols.messages import (
    BundleDelivery,
    ChosenDirectory,
    ConsistencyProof,
    KeyDirectory,
    Message,
    NonceCommitments,
    RingDirectory,
    StepRequest,
    SurvivorSet,
)
from protocols.params import BatchParams, Task
from protocols.phases import OPEN_BUNDLES, Phase, Stage
from protocols.policy import Policy
from protocols.primitives.keys import Entropy, SigningKey

Place = type[State] | type[Running]
"""Where a client stands: the type of its state, within a step that of the running step."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table.

    Attributes:
        stage: the call.
        places: where a client must stand.
        takes: the server's message; None: the first call has none.
        handler: gets the party, the state, within a step also the running step, and the message.
        leads_to: where the client can stand afterwards.
        only: the graph or threat model that has the row; "" stands for all.
    """

    stage: Stage
    places: tuple[Place, ...]
    takes: type[Message] | None
    handler: Callable[..., Move]
    leads_to: tuple[Place, ...]
    only: Literal["", "ring", "complete", "chosen", "malicious", "semi-honest"] = ""

    def applies(self, batch: BatchParams) -> bool:
        """Tell whether the batch has this row."""
        return self.only in {"", batch.graph, batch.threat_model}


_IN_BATCH = (Prepared, Masked, Confirmed)
_WITHIN_STEP = (Masked, Confirmed)

TRANSITIONS = (
    Transition(Phase.ADVERTISE_KEYS, (Start,), None, offline.advertise_keys, (Advertised,)),
    Transition(
        Phase.DRAW_GRAPH, (Advertised,), NonceCommitments, offline.draw_graph, (Drawn,), "ring"
    ),
    Transition(
        Phase.SHARE_KEYS, (Advertised,), KeyDirectory, offline.share_keys, (Shared,), "complete"
    ),
    Transition(Phase.SHARE_KEYS, (Drawn,), RingDirectory, offline.share_on_ring, (Shared,), "ring"),
    Transition(
        Phase.SHARE_KEYS, (Advertised,), ChosenDirectory, offline.share_chosen, (Shared,), "chosen"
    ),
    Transition(OPEN_BUNDLES, (Shared,), BundleDelivery, offline.open_bundles, (Prepared,)),
    Transition(Phase.MASKED_INPUT, _IN_BATCH, StepRequest, step.mask_input, (Masked,)),
    Transition(Phase.CONSISTENCY, (Masked,), SurvivorSet, step.confirm, (Confirmed,), "malicious"),
    Transition(Phase.UNMASKING, (Masked,), SurvivorSet, step.unmask, (Prepared,), "semi-honest"),
    Transition(
        Phase.UNMASKING,
        (Confirmed,),
        ConsistencyProof,
        step.unmask_confirmed,
        (Prepared,),
        "malicious",
    ),
)


def place_of(state: State) -> Place:
    """Return where a client with this state stands."""
    running = state.current if isinstance(state, Prepared) else None
    return type(state) if running is None else type(running)


def find(batch: BatchParams, state: State, stage: Stage) -> Transition:
    """Return the row of a call in a state.

    Raises:
        LocalProtocolError: there is none; the call is not due.
    """
    rows = [row for row in TRANSITIONS if row.stage == stage and row.applies(batch)]
    place = place_of(state)
    for row in rows:
        if place in row.places:
            return row
    if not rows:
        graph = "ring" if batch.graph == "ring" else f"{batch.graph} graph"
        raise LocalProtocolError(f"the {graph}, {batch.threat_model}, has no step {stage}")
    needed = rows[0].places[0]
    outside = "no step waits: " if needed in _WITHIN_STEP else ""
    raise LocalProtocolError(f"{outside}{stage} needs {needed.__name__}, not {place.__name__}")


class ClientSession:
    """One client in one batch: bytes in, bytes out.

    Call the offline steps in order, each once: `advertise_keys`, on the ring `draw_graph`,
    `share_keys`, `open_bundles`. Then, for every step of the batch, call `masked_input`, in the
    malicious model `confirm`, and `unmask`. A call first gives up what it is about to use and
    stores the next state only when it has succeeded. So after an error offline the session is
    dead, after an error online the step is, and nothing more leaves it (SPEC 6.5).

    Args:
        batch: what all parties agreed on.
        client: own id, a member of the roster.
        entropy: `entropy(k)` returns k fresh secret bytes; os.urandom outside tests.
        identity: malicious model: the client's own signing key.
        policy: the client's own bounds; the malicious model needs one.

    Raises:
        LocalProtocolError: the client is not in the roster under this identity, or has no policy.
        PolicyError: the batch is outside the policy. Nothing was drawn.
    """

    def __init__(
        self,
        batch: BatchParams,
        client: int,
        entropy: Entropy,
        *,
        identity: SigningKey | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._party = Party(batch, client, identity, policy)
        self._entropy = entropy
        self._state: State = Start()

    def __repr__(self) -> str:
        return f"ClientSession({type(self._state).__name__})"

    def advertise_keys(self) -> bytes:
        """Round 0: return the encoded Advertisement.

        Raises:
            LocalProtocolError: not the first call.
        """
        row, _ = self._give_up(Phase.ADVERTISE_KEYS)
        return self._finish(row, row.handler(self._party, self._entropy))

    def draw_graph(self, commitments: bytes) -> bytes:
        """Draw, ring only: return the encoded Nonce for the encoded NonceCommitments.

        Raises:
            DecodeError, RemoteProtocolError: see `offline.draw_graph`.
            LocalProtocolError: the call is not due, or the graph is complete.
        """
        return self.answer(Phase.DRAW_GRAPH, commitments)

    def share_keys(self, directory: bytes) -> bytes:
        """Round 1: return the encoded ShareBundles for the encoded KeyDirectory.

        On the ring the message is a RingDirectory and comes after `draw_graph`; on the chosen
        graph it is a ChosenDirectory.

        Raises:
            DecodeError, RemoteProtocolError: see `offline.share_keys`, `offline.share_on_ring`,
                `offline.share_chosen`.
            LocalProtocolError: the call is not due.
        """
        return self.answer(Phase.SHARE_KEYS, directory)

    def open_bundles(self, delivery: bytes) -> bytes | None:
        """After round 1: take in the encoded BundleDelivery.

        Returns:
            An encoded BundleReport if a bundle did not open; None if all is well.

        Raises:
            DecodeError, RemoteProtocolError: see `offline.open_bundles`.
            LocalProtocolError: the call is not due.
        """
        return self.answer(OPEN_BUNDLES, delivery) or None

    def masked_input(
        self, request: bytes, task: Task, inputs: Inputs | Compute, *, above: int = -1
    ) -> bytes:
        """Round 2: return the encoded MaskedInput for the encoded StepRequest.

        Args:
            request: the server's message. A refused one costs the keys that it names; one that
                cannot be decoded costs the next keys.
            task: the step as the client understands it from the broadcast that it saw.
            inputs: section name -> unsigned integers of shape (length,), each 0..maximum; or a
                function that computes them and is called after all checks.
            above: the last step that the client answered in other batches of the session. A step
                number selects the rounding stream (SPEC 7.3) and must not be used twice.

        Raises:
            DecodeError, RemoteProtocolError, PolicyError: see `step.mask_input`.
            LocalProtocolError: the input does not fit, or the offline exchange is not over.
        """
        row, state = self._give_up(Phase.MASKED_INPUT)
        if not isinstance(state, Prepared):
            raise LocalProtocolError("the offline exchange is not over")
        state = msgspec.structs.replace(state, last_step=max(state.last_step, above))
        # A request costs the keys that it names. Until it is decoded, assume the next ones.
        self._state = step.spend(state, min(state.unused, default=0))
        message = messages.decode(request, StepRequest, self._party.batch)
        self._state = step.spend(state, message.key)
        return self._finish(row, row.handler(self._party, state, message, task, inputs))

    def confirm(self, survivors: bytes) -> bytes:
        """Consistency round: return the encoded Consistency for the encoded SurvivorSet.

        Raises:
            DecodeError, RemoteProtocolError: see `step.check_survivors`.
            LocalProtocolError: no step waits for it, or this is the semi-honest model.
        """
        return self.answer(Phase.CONSISTENCY, survivors)

    def unmask(self, data: bytes) -> bytes:
        """Round 3: return the encoded UnmaskShares for the encoded SurvivorSet.

        In the malicious model the message is a ConsistencyProof and comes after `confirm`.

        Raises:
            DecodeError, RemoteProtocolError: see `step.check_survivors`, `step.check_proof`.
            LocalProtocolError: no step waits for it.
        """
        return self.answer(Phase.UNMASKING, data)

    def answer(self, stage: Stage, data: bytes) -> bytes:
        """Answer the server's message of any stage but the first and the masked input.

        Returns:
            The encoded reply; empty bytes if there is nothing to send.

        Raises:
            DecodeError, RemoteProtocolError, PolicyError: the message is not acceptable.
            LocalProtocolError: the call is not due.
        """
        row, state = self._give_up(stage)
        if row.takes is None or stage == Phase.MASKED_INPUT:
            raise LocalProtocolError(f"{stage} needs a call of its own")
        message = messages.decode(data, row.takes, self._party.batch)
        running = (state.current,) if isinstance(state, Prepared) else ()
        return self._finish(row, row.handler(self._party, state, *running, message))

    def end(self) -> None:
        """Erase all secrets of the batch. Its owner calls this when a new batch replaces it."""
        self._state = Ended()

    def check_due(self, stage: Stage) -> None:
        """Check that a call is due, without any effect.

        Raises:
            LocalProtocolError: it is not.
        """
        find(self._party.batch, self._state, stage)

    @property
    def state(self) -> State:
        """The whole state, secrets included, for the owner that stores it (SPEC 6.7)."""
        return self._state

    @classmethod
    def resume(cls, party: Party, state: State, entropy: Entropy) -> ClientSession:
        """Return a session that goes on from a stored state."""
        session = cls(
            party.batch, party.client, entropy, identity=party.identity, policy=party.policy
        )
        session._state = state
        return session

    def _give_up(self, stage: Stage) -> tuple[Transition, State]:
        """Take the state out of the session: whatever fails from now on ends step or batch."""
        state = self._state
        online = stage in {Phase.CONSISTENCY, Phase.UNMASKING}
        if online and isinstance(state, Prepared):
            self._state = msgspec.structs.replace(state, current=None)
        else:
            self._state = Failed()
        return find(self._party.batch, state, stage), state

    def _finish(self, row: Transition, move: Move) -> bytes:
        """Store the next state and encode the reply; empty bytes if there is nothing to send."""
        if place_of(move.state) not in row.leads_to:
            raise LocalProtocolError(f"{row.stage} does not lead to {place_of(move.state)}")
        self._state = move.state
        return b"" if move.reply is None else self._party.wrap(move.bound, move.reply)
