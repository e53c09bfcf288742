"""Flower's SecAgg+ in one process: its client mod and its server workflow, unmodified.

Only the transport is ours. It hands every message to its client in turn, times the call without
the stand-in for training, counts the protobuf bytes both ways without the model that is sent down,
and lets chosen clients fall silent from the masked upload on, which the server sees as a timeout.
Tested with flwr 1.41.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.masking.one_sum import MAX_WEIGHT, Case, Clock, Figures, Meter

STAGES = ("setup", "share_keys", "collect_masked_vectors", "unmask")


def installed() -> str | None:
    """Return the version of flwr, or None."""
    return version("flwr") if importlib.util.find_spec("flwr") else None


class _Transport:
    """The grid that Flower's workflow talks to."""

    def __init__(self, case: Case) -> None:
        self.stage = STAGES[0]
        self.clock = Clock()
        self.meter = Meter.of(case.ids)
        self._case = case
        self._vectors, self._weights = case.data()
        self._contexts = {u: _context(u) for u in case.ids}

    def send_and_receive(
        self,
        messages: Iterable[Any],
        *,
        timeout: float | None = None,  # noqa: ARG002 - the workflow's signature
    ) -> list[Any]:
        """Return the replies of all clients that are not silent."""
        with self.clock.running():
            late = STAGES.index(self.stage) >= STAGES.index("collect_masked_vectors")
            silent = self._case.silent if late else frozenset()
            return [self._deliver(m) for m in messages if m.metadata.dst_node_id not in silent]

    def _deliver(self, message: Any) -> Any:  # noqa: ANN401 - flwr is optional
        from flwr.app import Message
        from flwr.app.message_type import MessageType
        from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod

        client = message.metadata.dst_node_id
        request = _to_wire(message.content)
        self.meter.got[client] += len(request) - _model_size(message.content)
        received = Message(
            _from_wire(request),
            dst_node_id=client,
            message_type=MessageType.TRAIN,
        )
        training = Clock()
        clock = self.meter.clients[client]
        with clock.running():
            reply = secaggplus_mod(received, self._contexts[client], self._train(client, training))
        clock.cpu -= training.cpu
        clock.wall -= training.wall
        wire = _to_wire(reply.content)
        self.meter.sent[client] += len(wire)
        return Message(_from_wire(wire), reply_to=message)

    def _train(self, client: int, clock: Clock) -> Callable[[Any, Any], Any]:
        """Return what stands for local training."""
        from flwr.app import Message
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.compat.common.recorddict_compat import fitres_to_recorddict

        def train(message: Any, _: Any) -> Any:  # noqa: ANN401
            with clock.running():
                parameters = ndarrays_to_parameters([self._vectors[client]])
                result = FitRes(Status(Code.OK, ""), parameters, self._weights[client], {})
                return Message(fitres_to_recorddict(result, True), reply_to=message)

        return train


def flower(case: Case) -> Figures:
    """Run one aggregation on the complete graph with Flower's defaults and our threshold.

    Raises:
        RuntimeError: a stage of Flower's workflow failed.
    """
    from flwr.common import parameters_to_ndarrays
    from flwr.compat.common.recorddict_compat import arrayrecord_to_parameters
    from flwr.server.workflow.constant import MAIN_PARAMS_RECORD
    from flwr.server.workflow.secure_aggregation.secaggplus_workflow import (
        SecAggPlusWorkflow,
        WorkflowState,
    )

    _set_up_runtime()
    transport = _Transport(case)
    workflow = SecAggPlusWorkflow(
        num_shares=1.0,
        reconstruction_threshold=2 * case.clients // 3 + 1,
        max_weight=float(MAX_WEIGHT),
    )
    context, state = _server_context(case), WorkflowState()
    server = transport.meter.server
    for stage in STAGES:
        transport.stage = stage
        with server.running():
            done = getattr(workflow, f"{stage}_stage")(transport, context, state)
        if not done:
            raise RuntimeError(f"Flower's stage {stage} failed")
    server.cpu -= transport.clock.cpu
    server.wall -= transport.clock.wall
    record = context.state.array_records[MAIN_PARAMS_RECORD]
    mean = parameters_to_ndarrays(arrayrecord_to_parameters(record, True))[0]
    return transport.meter.figures(case.silent, case.error(mean))


def _server_context(case: Case) -> Any:  # noqa: ANN401
    from flwr.app import ConfigRecord
    from flwr.common import FitIns, ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

    class Proxy:
        def __init__(self, node_id: int) -> None:
            self.node_id = node_id

    class OneRound(FedAvg):
        """Selects everyone and takes the aggregate as it is."""

        def configure_fit(self, _round: int, parameters: Any, _manager: Any) -> Any:  # noqa: ANN401
            return [(Proxy(u), FitIns(parameters, {})) for u in case.ids]

        def aggregate_fit(self, _round: int, results: Any, _failures: Any) -> Any:  # noqa: ANN401
            return results[0][1].parameters, {}

    context = LegacyContext(_context(0), strategy=OneRound())
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    model = ndarrays_to_parameters([np.zeros(case.length, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(model, True)
    return context


def _set_up_runtime() -> None:
    """Do what Flower's runtime does before an app starts."""
    from flwr.supercore.task_identity import TaskIdentity

    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def _context(node: int) -> Any:  # noqa: ANN401
    from flwr.app import Context, RecordDict

    return Context(run_id=1, node_id=node, node_config={}, run_config={}, state=RecordDict())


def _to_wire(content: Any) -> bytes:  # noqa: ANN401
    from flwr.common.serde import recorddict_to_proto

    return bytes(recorddict_to_proto(content).SerializeToString())


def _model_size(content: Any) -> int:  # noqa: ANN401
    """Return the bytes of the broadcast in a message, which no side counts."""
    from flwr.app import RecordDict

    models = content.array_records.items()
    return sum(len(_to_wire(RecordDict({name: model}))) for name, model in models)


def _from_wire(data: bytes) -> Any:  # noqa: ANN401
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict

    return recorddict_from_proto(RecordDict.FromString(data))
