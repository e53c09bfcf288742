"""The server's side of the messenger: the sums of a round, and the schedule of its steps."""

from codream_secure.aggregation.aggregator import Aggregator
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.model_updates import (
    decoded_update,
    first_scales,
    model_digest,
    packed,
    sent_to,
    unpacked,
)
from codream_secure.aggregation.requests import VERSION, ModelRequest
from codream_secure.config.resolved import Resolved
from codream_secure.errors import StepAborted
from codream_secure.federation.members import Federation, Member
from codream_secure.federation.rounds import Progress
from codream_secure.learning.schedule import rate_at
from codream_secure.models.tensors import Tensors, add, load, tensors_of
from codream_secure.runtime.parallel import in_parallel
from codream_secure.runtime.stopwatch import Stopwatch
from codream_secure.storage.checkpoint import CommonState

_DOWN_BITS = 8


def round_sums(config: Resolved) -> int:
    """Return the sums of a round: the averages, and the labels of its dreams if it has any."""
    labels = config.dream.syntheses if config.learning.kd_epochs else 0
    return config.messenger.messenger_sums + labels


class CommonModel:
    """Asks for the sum of all clients' updates, adds its mean, and sends the mean to all.

    The model is that of the server's student, which learns from nothing else.

    Args:
        everybody: the clients, whose copies start equal.
        aggregator: sums the clients' updates.
        ledger: counts what is sent to the clients.
        twins: whether each client's twin takes as many local steps, at the same rate.

    Attributes:
        sums: how many sums were asked for; it numbers the requests.
    """

    def __init__(
        self, everybody: Federation, aggregator: Aggregator, ledger: ByteLedger, *, twins: bool
    ) -> None:
        self.sums = 0
        self._model, self._config = everybody.student.model, everybody.config
        self._members = everybody.members
        self._aggregator, self._ledger, self._twins = aggregator, ledger, twins
        self._scales = first_scales(tensors_of(self._model))

    def run(
        self, number: int, progress: Progress, stopwatch: Stopwatch, spent: float | None
    ) -> None:
        """Let all clients train beside the common model, and average it, as often as is set.

        Args:
            number: of the round.
            progress: follows the sums.
            stopwatch: measures local training, and that of the twins apart.
            spent: share of a comparison's budget that is spent; None: rounds are counted.
        """
        sums, parts = self._config.messenger.messenger_sums, self._parts
        progress.start(f"round {number}: common model", sums)
        members = self._members.values()
        for part in range(sums):
            rate = rate_at(self._config, self._done(number, part / parts, spent))
            for member in members:
                member.client.learner.set_rate(rate)
            with stopwatch.measure("local_training"):
                self.average()
            if self._twins:
                with stopwatch.measure("independent"):
                    list(in_parallel(Member.train_twin, members))
            progress.advance()

    def done(self, number: int, spent: float | None) -> float:
        """Return the share of the run, 0 to 1, that is done when clients learn from dreams."""
        return self._done(number, 1 - 1 / self._parts, spent)

    @property
    def _parts(self) -> int:
        """Into how many parts a round is divided: its averages, and learning from its dreams."""
        return self._config.messenger.messenger_sums + bool(self._config.learning.kd_epochs)

    def _done(self, number: int, part: float, spent: float | None) -> float:
        return (number - 1 + part) / self._config.dream.rounds if spent is None else spent

    def average(self) -> bool:
        """Ask for one sum and move the common model; return False if too few clients stayed."""
        self.sums += 1
        state = tensors_of(self._model)
        request = self._request(state)
        try:
            answer = self._aggregator.sum(request)
            mean, self._scales = decoded_update(answer, request, state)
        except StepAborted:
            return False
        sent = packed(self.sums, _DOWN_BITS, self._config.run.seed or 0, mean)
        message = sent_to(self._members, sent, self._ledger)
        for member in self._members.values():
            if member.client.messenger is not None:
                member.client.messenger.receive(message)
        # The server adds what it sent, rounded as it is: its model and the clients' stay the same.
        load(self._model, add(state, unpacked(sent, state)))
        return True

    def _request(self, state: Tensors) -> ModelRequest:
        return ModelRequest(
            version=VERSION,
            round=self.sums,
            model=model_digest(state),
            sizes=tuple(value.numel() for value in state.values()),
            scales=tuple(self._scales.values()),
            bits=self._config.messenger.messenger_bits,
        )

    def state(self) -> CommonState:
        """Return what a checkpoint stores besides the model, which it has as the student's."""
        return CommonState(scales=self._scales, sums=self.sums)

    def restore(self, state: CommonState) -> None:
        """Restore the state that `state` returned.

        Raises:
            KeyError: the state belongs to another model.
        """
        self._scales = {name: state.scales[name] for name in self._scales}
        self.sums = state.sums
