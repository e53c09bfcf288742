"""A mod for any ClientApp: the server learns the masked sum of what its functions return.

    app = ClientApp(mods=[secure_mod])

The server uses `SecureGrid`. ``--node-config`` needs ``client`` and ``state``, and in the malicious
model ``identity`` and ``roster``, as in `flower.client_app`.
"""

import os
from dataclasses import dataclass

import msgspec
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from codream_secure.errors import RequestRefused
from codream_secure.flower.carrier import body_of, content_with
from codream_secure.flower.mean import array_record, check_numbers, client_inputs
from codream_secure.flower.mean_request import (
    EVALUATE,
    TRAIN,
    MeanRequest,
    decode_request,
    encode_request,
    task_of,
)
from codream_secure.flower.node_config import site_settings
from codream_secure.sites import weights
from codream_secure.sites.pending import STATE
from codream_secure.sites.policy import SitePolicy
from codream_secure.sites.site import Site
from codream_secure.sites.summand import Contribution
from codream_secure.storage.state_folder import StateFolder
from protocols.params import Task

_SEED_SIZE = 32


def secure_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer one message of `SecureGrid`; only a masked input calls the app's function.

    Raises:
        RequestRefused: the message asks for an answer in the clear.
        UserError: the node's configuration is wrong, or the folder cannot be used.
    """
    body = body_of(message.content)
    if body is None:
        raise RequestRefused("this client answers under masks only: use SecureGrid at the server")
    settings = site_settings(context.node_config, node=context.node_id, learns=False)
    policy = SitePolicy.beside(settings.folder)
    with Site(settings, _Summand(message, context, call_next, policy)) as site:
        answer = site.handle_bytes(body)
        if (state := site.state) is not None:
            context.state = _decoded(state)
    return Message(content_with(answer), reply_to=message)


@dataclass(frozen=True, slots=True)
class _Summand:
    """The `Summand` whose input is what the app's function returns."""

    message: Message
    context: Context
    call_next: ClientAppCallable
    policy: SitePolicy

    @property
    def kinds(self) -> tuple[str, ...]:
        return TRAIN, EVALUATE

    def task(self, broadcast: bytes, step: int, folder: StateFolder) -> Task:
        request = decode_request(broadcast)
        if request.run_config != dict(self.context.run_config):
            raise RequestRefused("the server has another run configuration than this client")
        # Flower's metadata select the function and are not part of the digest. Without this check
        # a server could have all but one client call a function that returns nothing.
        wanted = "evaluate" if request.evaluate else "train"
        if self.message.metadata.message_type != wanted:
            raise RequestRefused(f"what is asked is answered to {wanted!r} messages only")
        check_numbers(request, self.policy)
        weights.check(folder, request.keys[2], None if request.evaluate else request.weight_cap)
        if request.weigh:
            weights.check_untold(folder, broadcast)
        return task_of(request, broadcast, step)

    def content(self, broadcast: bytes) -> bytes:
        return encode_request(msgspec.structs.replace(decode_request(broadcast), step=0))

    def contribute(self, broadcast: bytes, folder: StateFolder) -> Contribution:
        request = decode_request(broadcast)
        if request.weigh:
            weights.tell(folder, broadcast, request.weight_cap)
        faults = []
        before = _encoded(self.context.state)
        # Steps that are known to be finished have moved the state; Flower may not know it yet.
        self.context.state = _decoded(folder.load(STATE) or before)
        try:
            content = self._call(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not show
            faults.append(f"the app's function raised {type(error).__name__}: {error}")
            content = RecordDict()
        arrays = next(iter(content.array_records.values()), ArrayRecord())
        metrics = next(iter(content.metric_records.values()), MetricRecord())
        inputs, repaired, missing = client_inputs(request, arrays, metrics, os.urandom(_SEED_SIZE))
        state, self.context.state = _encoded(self.context.state), _decoded(before)
        return Contribution(inputs, repaired, (*faults, *missing), state)

    def _call(self, request: MeanRequest) -> RecordDict:
        """Call the app's function with what the broadcast's digest covers, and nothing else."""
        arrays, config, _ = request.keys
        content = RecordDict({arrays: array_record(request), config: ConfigRecord(request.config)})
        self.message.content = content
        return self.call_next(self.message, self.context).content


def _encoded(state: RecordDict) -> bytes:
    return bytes(recorddict_to_proto(state).SerializeToString(deterministic=True))


def _decoded(state: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(state))
