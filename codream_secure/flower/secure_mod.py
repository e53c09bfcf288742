"""A mod for any ClientApp: what its functions return is added up under masks, and only that.

    app = ClientApp(mods=[secure_mod])

The server uses `SecureGrid`. In ``--node-config`` stand ``client``, ``state`` and, in the
malicious model, ``identity`` and ``roster``, as in `flower.client_app`.
"""

import os
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from codream_secure.errors import RequestRefused
from codream_secure.flower.mean import array_record, client_inputs
from codream_secure.flower.mean_request import (
    EVALUATE,
    TRAIN,
    MeanRequest,
    decode_request,
    task_of,
)
from codream_secure.flower.node_config import site_settings
from codream_secure.sites import wire
from codream_secure.sites.site import SumSite
from codream_secure.storage.state_folder import StateFolder
from protocols.client.step import Inputs
from protocols.params import Task

_SEED_SIZE = 32
_WEIGHED = "weighed"
_WEIGHT_KEY = "weight-key"


def secure_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer one message of `SecureGrid`; the app's function is called for a masked input alone.

    Raises:
        RequestRefused: the message asks for an answer in the clear.
        UserError: the node's configuration lacks something.
    """
    body = wire.body_of(message.content)
    if body is None:
        raise RequestRefused("this client answers under masks only: use SecureGrid at the server")
    settings = site_settings(context.node_config, learns=False)
    with SumSite(settings, _Summand(message, context, call_next)) as site:
        answer = site.handle_bytes(body)
    return Message(RecordDict({wire.RECORD: ConfigRecord({wire.BODY: answer})}), reply_to=message)


@dataclass(frozen=True, slots=True)
class _Summand:
    """What the app's function returns, as a `Summand`."""

    message: Message
    context: Context
    call_next: ClientAppCallable

    @property
    def kinds(self) -> tuple[str, ...]:
        return TRAIN, EVALUATE

    def task(self, broadcast: bytes, step: int) -> Task:
        request = decode_request(broadcast)
        if request.run_config != dict(self.context.run_config):
            raise RequestRefused("the server has another run configuration than this client")
        # The digest does not cover Flower's metadata, which say what function is called.
        wanted = "evaluate" if request.evaluate else "train"
        if self.message.metadata.message_type != wanted:
            raise RequestRefused(f"what is asked is answered to {wanted!r} messages only")
        return task_of(request, broadcast, step)

    def inputs(self, broadcast: bytes, folder: StateFolder) -> Inputs:
        request = decode_request(broadcast)
        self._check_weight_key(request.keys[2], folder)
        if request.weigh and folder.load(_WEIGHED) is not None:
            raise RequestRefused("the weight was told once in this session (D2)")
        content = self._call(request)
        arrays = None
        if not request.evaluate:
            arrays = next(iter(content.array_records.values()), None)
            if arrays is None:
                raise RequestRefused("training returned no arrays")
        metrics = next(iter(content.metric_records.values()), MetricRecord())
        found = client_inputs(request, arrays, metrics, os.urandom(_SEED_SIZE))
        if request.weigh:
            folder.save(_WEIGHED, b"")
        return found

    @staticmethod
    def _check_weight_key(key: str, folder: StateFolder) -> None:
        """Hold the server to the name of the weight that it gave first in the session.

        Under another name what was the weight would be a metric like others (D2).
        """
        known = folder.load(_WEIGHT_KEY)
        if known is None:
            folder.save(_WEIGHT_KEY, key.encode())
        elif known != key.encode():
            raise RequestRefused("the weight had another name in this session (D2)")

    def _call(self, request: MeanRequest) -> RecordDict:
        """Call the app's function with what the digest covers, and nothing else."""
        arrays, config, _ = request.keys
        content = RecordDict({arrays: array_record(request), config: ConfigRecord(request.config)})
        self.message.content = content
        return self.call_next(self.message, self.context).content
