"""A Grid for any strategy that averages; it gets one reply, the mean of masked updates.

    strategy.start(grid=SecureGrid(grid, context, clients=3), ...)

Clients use `secure_mod`. Strategies that compare single replies (Krum, medians, trimmed means) see
only the mean, and do no more than FedAvg.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from codream_secure.errors import UserError
from codream_secure.flower.carrier import Carrier
from codream_secure.flower.mean import integers, mean_metrics, new_arrays, sent_arrays
from codream_secure.flower.mean_request import WEIGHT, MeanRequest, encode_request
from codream_secure.flower.node_config import read_roster
from codream_secure.sites.sums import SumServer
from codream_secure.sites.wire import VERSION
from protocols.errors import NotEnoughSurvivors
from protocols.phases import ThreatModel
from protocols.server.step import Finished

log = logging.getLogger("flwr")


class SecureGrid(Grid):
    """Sums what clients return to train and evaluate messages; it sees only the sums.

    All clients take part in every step. Those that are not connected, or fail, have dropped out.
    Below the threshold there is no reply, and Flower's strategies keep their model.

    Args:
        grid: Flower's.
        context: of the ServerApp; clients must have the same run configuration.
        clients: how many there are; their numbers are 0, 1, 2, …
        clip: c; larger changes of a number in a client's update are cut off at ±c.
        bits: q, of each number of the update; 1 to 24.
        train_metrics: names of metrics whose mean comes back with the model.
        evaluate_metrics: the same for evaluation; without any, clients are not asked to evaluate.
        metric_clip: larger absolute values of a metric are cut off.
        weight_cap: W; a client counts with weight min(examples, W). None: all count equally. The
            server learns the sum of weights once, in the first step (D2).
        weighted_by_key: the strategy's name of the number of examples.
        threat_model: "malicious" needs ``roster``.
        roster: file of public keys, of `codream-secure deploy roster`.
        threshold: t, clients that must stay; None: floor(2n/3) + 1.
        rejoin: malicious model: whether a client that missed a step may take part in the next one.
        key_steps: M, the number of steps that one key exchange makes keys for.
        timeout: seconds to wait for the answers of each round; a dead client costs all of them.
        start_timeout: seconds to wait for all clients at the start.

    Attributes:
        server: the session of sums.

    Raises:
        UserError: the roster is missing, or has not one key for each client.
        ConfigError: the protocol does not allow these parameters.
    """

    def __init__(
        self,
        grid: Grid,
        context: Context,
        *,
        clients: int,
        clip: float = 1.0,
        bits: int = 20,
        train_metrics: tuple[str, ...] = (),
        evaluate_metrics: tuple[str, ...] = (),
        metric_clip: float = 16.0,
        weight_cap: int | None = None,
        weighted_by_key: str = "num-examples",
        threat_model: ThreatModel = "semi-honest",
        roster: str | Path | None = None,
        threshold: int | None = None,
        rejoin: bool = False,
        key_steps: int = 16,
        timeout: float = 600.0,
        start_timeout: float = 120.0,
    ) -> None:
        self._grid, self._run_config = grid, dict(context.run_config)
        self._clients, self._start_timeout = clients, start_timeout
        self._carrier = Carrier(grid, timeout, message_type="train")
        self.server = SumServer(
            self._carrier,
            clients=clients,
            threshold=threshold,
            threat_model=threat_model,
            identities=_identities(roster, clients if threat_model == "malicious" else 0),
            rejoin=rejoin,
            key_steps=key_steps,
            tell=lambda line: log.warning("%s", line),
        )
        self._carrier.door = self.server.door
        self._settings = {"bits": bits, "clip": clip, "metric_clip": metric_clip}
        self._metrics = {False: train_metrics, True: evaluate_metrics}
        self._weight_cap, self._weighted_by = weight_cap or 0, weighted_by_key
        self._mean_weight: float | None = None
        self._nodes: set[int] = set()
        self._fixed: set[str] = set()

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._grid.run

    def create_message(self, *_: object, **__: object) -> NoReturn:
        """Not offered: see `send_and_receive`."""
        raise UserError(_ONLY)

    def push_messages(self, messages: Iterable[Message]) -> NoReturn:  # noqa: ARG002 - Grid's
        """Not offered: see `send_and_receive`."""
        raise UserError(_ONLY)

    def pull_messages(self, message_ids: Iterable[str]) -> NoReturn:  # noqa: ARG002 - Grid's
        """Not offered: see `send_and_receive`."""
        raise UserError(_ONLY)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of connected clients; the first call waits for all of them to start."""
        wait = 0.0 if self._nodes else self._start_timeout
        self._carrier.wait_for(self._clients, wait)
        self._nodes = set(self._carrier.sites())
        return sorted(self._nodes)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - Grid's
    ) -> list[Message]:
        """Run one step of the protocol; return one reply with the mean, or none.

        Args:
            messages: a strategy's, the same for every connected client.
            timeout: ignored; the constructor's holds.

        Raises:
            UserError: the messages differ, or are neither train nor evaluate messages; or the
                step that sums the weights was aborted.
        """
        asked = list(messages)
        if not asked:
            return []
        evaluate = _is_evaluation(asked, self._nodes)
        if evaluate and not self._metrics[True]:
            log.info("no evaluate_metrics are named: clients are not asked to evaluate")
            return []
        first = asked[0]
        self._carrier.message_type = first.metadata.message_type
        request = self._request(first.content, evaluate=evaluate)
        try:
            finished = self._step(request)
        except NotEnoughSurvivors as error:
            log.warning("step %d was aborted, nothing was summed: %s", request.step, error)
            if request.weigh:
                raise UserError(
                    "weights are told once, and this step was aborted: weigh all "
                    "clients alike, or say `deploy forget` at every client and start again"
                ) from error
            return []
        log.info("masked sum of %d of %d clients", len(finished.survivors), self._clients)
        return [Message(self._content(request, finished), reply_to=first)]

    def _step(self, request: MeanRequest) -> Finished:
        return self.server.sum(request.kind, request.sections, lambda _: encode_request(request))

    def _request(self, content: RecordDict, *, evaluate: bool) -> MeanRequest:
        (arrays_key, arrays), (config_key, config) = _records(content)
        # Strategies turn integers into floats. An array that was integer at first stays fixed.
        self._fixed |= integers(arrays)
        cap = 0 if evaluate else self._weight_cap
        return MeanRequest(
            version=VERSION,
            step=self.server.step,
            evaluate=evaluate,
            keys=(arrays_key, config_key, self._weighted_by),
            arrays=sent_arrays(arrays),
            config=dict(config),
            run_config=self._run_config,
            metrics=self._metrics[evaluate],
            weight_cap=cap,
            weigh=bool(cap) and self._mean_weight is None,
            fixed=tuple(sorted(self._fixed & set(arrays))),
            **self._settings,  # type: ignore[arg-type]
        )

    def _content(self, request: MeanRequest, finished: Finished) -> RecordDict:
        """Return the mean in the form of one client's reply."""
        count = len(finished.survivors)
        if request.weigh:
            self._mean_weight = int(finished.totals[WEIGHT][0]) / count
        metrics: Mapping[str, float] = mean_metrics(request, finished)
        content = RecordDict({"metrics": MetricRecord({self._weighted_by: count, **metrics})})
        if not request.evaluate:
            content[request.keys[0]] = new_arrays(request, finished, self._mean_weight)
        return content


_ONLY = "SecureGrid offers only send_and_receive, for train and evaluate messages"


def _identities(roster: str | Path | None, needed: int) -> tuple[bytes, ...]:
    """Return the public keys in a roster file, which must be this many."""
    identities = () if roster is None else read_roster(Path(roster))
    if len(identities) != needed:
        raise UserError(
            f"this threat model needs a roster of {needed} keys, and {len(identities)} are given"
        )
    return identities


def _is_evaluation(messages: list[Message], nodes: set[int]) -> bool:
    kinds = {message.metadata.message_type for message in messages}
    if len(kinds) != 1 or not kinds <= {"train", "evaluate"}:
        raise UserError(_ONLY)
    if {message.metadata.dst_node_id for message in messages} < nodes:
        raise UserError(
            "every client takes part in a masked sum: leave fraction_train and fraction_evaluate "
            "at 1.0, or 0.0"
        )
    if any(message.content is not messages[0].content for message in messages):
        raise UserError("every client must be sent the same in a masked sum")
    return kinds == {"evaluate"}


def _records(content: RecordDict) -> tuple[tuple[str, ArrayRecord], tuple[str, ConfigRecord]]:
    arrays, configs = list(content.array_records.items()), list(content.config_records.items())
    if len(arrays) != 1 or len(configs) != 1:
        raise UserError("a message has one record of arrays and one of configuration")
    return arrays[0], configs[0]
