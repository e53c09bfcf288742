"""Who is there in which aggregation: simulated failures, and what they do to key batches.

Only bookkeeping, no cryptography: a run in the clear loses the same clients at the same steps as
a masked one, and the two give the same dreams.
"""

from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.storage.checkpoint import AttendanceState
from protocols.errors import NotEnoughSurvivors
from protocols.params import KEY_ATTEMPTS
from protocols.phases import DropSchedule, Phase


class Attendance:
    """Which clients hold shares, and which steps come to their end (SPEC 6.2, 6.3, 8.1).

    Args:
        settings: roster, threshold, threat model, dropouts.

    Attributes:
        key_exchanges: begun so far, those included that failed or that travelled with a step.
    """

    def __init__(self, settings: AggregationSettings) -> None:
        self._settings = settings
        self.key_exchanges = 0
        self._keys = 0
        self._members: tuple[int, ...] = ()
        self._prepared: tuple[int, ...] = ()

    @property
    def keys_left(self) -> int:
        """How many steps can still begin without another exchange."""
        return self._keys

    @property
    def prepared(self) -> tuple[int, ...]:
        """Who holds shares of the batch whose keys were made on the way of the last step."""
        return self._prepared

    @property
    def members(self) -> tuple[int, ...]:
        """Who can be active in the next step."""
        return self._members if self._keys else ()

    @property
    def needs_keys(self) -> bool:
        """Whether a new batch has to be made before the next step."""
        spare = min(self._settings.needed + 1, len(self._settings.roster))
        return len(self.members) < spare

    def renewal(self, step: int) -> int:
        """Return M of the batch whose keys are made on the way of this step.

        0 unless this step uses the last keys and more steps are planned.
        """
        return self._settings.batch_steps(step + 1) if self._keys == 1 else 0

    def make_keys(self, steps: int) -> list[DropSchedule]:
        """Start a new batch of M = ``steps``; returns who fails in each attempt at its keys.

        Afterwards nobody is a member if all attempts fell below the threshold.
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
        """Play the rounds of a step.

        Args:
            drops: who falls silent in it.
            renews: whether the next batch's keys are made on the way.

        Returns:
            How many inputs are in the sum.

        Raises:
            NotEnoughSurvivors: where the protocol raises it.
        """
        active = self.members
        self._keys -= 1
        inputs = self._present(active, drops, Phase.MASKED_INPUT)
        if not self._may_rejoin:
            self._members = inputs
        *earlier, last = self._settings.online[1:]
        for phase in earlier:
            self._present(inputs, drops, phase)
        if renews:
            self.key_exchanges += 1
            self._prepared = self._sharers(drops.beside())
        self._present(inputs, drops, last)
        return len(inputs)

    def state(self) -> AttendanceState:
        """Return what a checkpoint holds of it."""
        return AttendanceState(
            keys=self._keys,
            members=self._members,
            prepared=self._prepared,
            key_exchanges=self.key_exchanges,
        )

    def restore(self, state: AttendanceState) -> None:
        """Become what it was.

        Raises:
            ValueError: the state is that of another roster.
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
        """Who holds shares after a key exchange; nobody if it fell below the threshold."""
        sharers = tuple(c for c in self._settings.roster if c not in drops.drops)
        return sharers if len(sharers) >= self._settings.needed else ()
