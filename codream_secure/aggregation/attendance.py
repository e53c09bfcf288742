"""Which clients take part in which step: simulated failures and their effect on key batches.

This is bookkeeping without cryptography. It lets a run in the clear lose the same clients in the
same steps as a masked run, so that both give the same dreams.
"""

from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.storage.checkpoint import AttendanceState
from protocols.errors import NotEnoughSurvivors
from protocols.params import KEY_ATTEMPTS
from protocols.phases import DropSchedule, Phase


class Attendance:
    """Tracks which clients hold shares, and which steps come to a sum (SPEC 6.2, 6.3, 8.1).

    Args:
        settings: roster, threshold, threat model, dropouts.

    Attributes:
        key_exchanges: number begun so far; failed ones and those within a step count too.
    """

    def __init__(self, settings: AggregationSettings) -> None:
        self._settings = settings
        self.key_exchanges = 0
        self._keys = 0
        self._members: tuple[int, ...] = ()
        self._prepared: tuple[int, ...] = ()

    @property
    def keys_left(self) -> int:
        """How many more steps the current key batch serves."""
        return self._keys

    @property
    def prepared(self) -> tuple[int, ...]:
        """Clients that hold shares of the next key batch, made in the last step of this one."""
        return self._prepared

    @property
    def members(self) -> tuple[int, ...]:
        """Clients that can take part in the next step; none without keys."""
        return self._members if self._keys else ()

    @property
    def needs_keys(self) -> bool:
        """Whether a new key batch is needed before the next step."""
        # One more than the threshold: with exactly t members, the first dropout aborts the step.
        spare = min(self._settings.needed + 1, len(self._settings.roster))
        return len(self.members) < spare

    def renewal(self, step: int) -> int:
        """Return M of the key batch that is made during this step, 0 for none.

        A batch is made if this step uses the last keys and more steps are planned. Its messages
        travel with those of the step and cost no round trips.
        """
        return self._settings.batch_steps(step + 1) if self._keys == 1 else 0

    def make_keys(self, steps: int) -> list[DropSchedule]:
        """Start a new key batch of M = ``steps``; return who fails in each attempt.

        The batch with the most clients is used, a prepared one included. If all attempts fell
        below the threshold, nobody is a member.
        """
        best, self._prepared = self._prepared, ()
        attempts: list[DropSchedule] = []
        while best != self._settings.roster and len(attempts) < KEY_ATTEMPTS:
            attempts.append(self._settings.key_drops(self.key_exchanges))
            self.key_exchanges += 1
            best = max(best, self._sharers(attempts[-1]), key=len)
        self._members, self._keys = best, steps if best else 0
        return attempts

    def finish_step(self, drops: DropSchedule, *, renews: bool) -> int:
        """Simulate the rounds of a step.

        Args:
            drops: who falls silent in which round.
            renews: whether the next key batch is made during the step.

        Returns:
            Number of inputs in the sum.

        Raises:
            NotEnoughSurvivors: in the round in which the protocol raises it.
        """
        active = self.members
        self._keys -= 1
        inputs = self._present(active, drops, Phase.MASKED_INPUT)
        if not self._may_rejoin:
            # If a server could leave a client out for one step, the difference of two sums would
            # reveal the client's input (SPEC 8.1).
            self._members = inputs
        *earlier, last = self._settings.online[1:]
        for phase in earlier:
            self._present(inputs, drops, phase)
        if renews:
            # Before the last round: the new keys stay even if that round aborts the step.
            self.key_exchanges += 1
            self._prepared = self._sharers(drops.beside())
        self._present(inputs, drops, last)
        return len(inputs)

    def state(self) -> AttendanceState:
        """Return what a checkpoint stores."""
        return AttendanceState(
            keys=self._keys,
            members=self._members,
            prepared=self._prepared,
            key_exchanges=self.key_exchanges,
        )

    def restore(self, state: AttendanceState) -> None:
        """Restore the state that `state()` returned.

        Raises:
            ValueError: the state belongs to another roster.
        """
        if not set(state.members) | set(state.prepared) <= set(self._settings.roster):
            raise ValueError("attendance of clients that there are not")
        if state.prepared and len(state.prepared) < self._settings.needed:
            raise ValueError("keys of fewer clients than the threshold")
        self._keys, self._members = state.keys, state.members
        self._prepared, self.key_exchanges = state.prepared, state.key_exchanges

    @property
    def _may_rejoin(self) -> bool:
        return self._settings.rejoin or self._settings.threat_model == "semi-honest"

    def _present(
        self, waiting: tuple[int, ...], drops: DropSchedule, phase: Phase
    ) -> tuple[int, ...]:
        there = tuple(c for c in waiting if not drops.silent(c, phase))
        if len(there) < self._settings.needed:
            raise NotEnoughSurvivors(phase, len(there), self._settings.needed)
        return there

    def _sharers(self, drops: DropSchedule) -> tuple[int, ...]:
        """Return who holds shares after a key exchange; nobody if too few took part."""
        sharers = tuple(c for c in self._settings.roster if c not in drops.drops)
        return sharers if len(sharers) >= self._settings.needed else ()
