"""One site: a client whose process may end after every message, and start again from its folder.

Flower starts a process for a message. So everything that a client must remember is in a folder of
its own, mode 0700, written before an answer leaves (D5): its keys and the answers that it gave
(`codream_secure.state_folder`), its model, the dreams of the round, the budget it has spent.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import torch

from codream_secure.acquisition import (
    DreamBuffer,
    acquire,
    label_mean,
    learn_images,
    soft_targets,
)
from codream_secure.aggregation import DREAMING, FieldSum, colluders
from codream_secure.attendance import AggregationSettings
from codream_secure.checkpoint import ClientState, Pair, decode_state, encode_state
from codream_secure.config import Config, set_
from codream_secure.data.datasets import Dataset
from codream_secure.errors import RequestRefused, UserError
from codream_secure.federation import Federation
from codream_secure.flower.wire import (
    VERSION,
    Advertise,
    Answer,
    Ask,
    Batch,
    Confirm,
    Hello,
    Images,
    Learn,
    Message,
    Present,
    Share,
    Unmask,
    encode,
)
from codream_secure.messages import (
    LabelRequest,
    SoftLabels,
    asked_labels,
    decode_request,
    digest,
    sections,
)
from codream_secure.parallel import one_core_each
from codream_secure.privacy.class_statistics import ClassImages
from codream_secure.schedule import acquisition_settings, warmup_steps
from codream_secure.seeds import generator
from codream_secure.state_folder import StateFolder, StoredClient
from protocols.errors import SecAggError
from protocols.field import PrimeField
from protocols.keys import SigningKey
from protocols.packing import unpack
from protocols.params import BatchParams, Task
from protocols.policy import Policy
from protocols.preprocessing import Party

_SESSION, _MODEL, _ASKED, _CHARGED = "session", "model", "asked", "charged"
_LABELLED = "labelled-"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """What a site brings.

    Attributes:
        client: its number in the roster, from 0.
        folder: of its own, for everything that must survive.
        data: its examples; with ``whole`` all of the training part is its own, else its part of
            the partition that the run names (a demonstration with public data).
        whole: see ``data``.
        identity: its signing key, in the malicious model.
        roster: everybody's public keys, known by other means than the server.
    """

    client: int
    folder: Path
    data: Dataset
    whole: bool = False
    identity: SigningKey | None = None
    roster: tuple[bytes, ...] = ()


class _Session(msgspec.Struct, frozen=True):
    session: bytes
    options: dict[str, int | float | str | bool | None]
    identities: tuple[bytes, ...]
    rounds: int = 0


class _ModelState(msgspec.Struct, frozen=True):
    """Between two rounds."""

    client: ClientState
    buffer: list[Pair]


class Site:
    """Answers messages from its folder; close it before another process may.

    Args:
        settings: what the site brings.

    Raises:
        UserError: the folder cannot be used, or the data do not fit the run.
    """

    def __init__(self, settings: SiteSettings) -> None:
        self._settings = settings
        self._folder = StateFolder(settings.folder)
        kept = self._folder.load(_SESSION)
        self._session = None if kept is None else msgspec.msgpack.decode(kept, type=_Session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.close()

    def handle(self, message: Message) -> Answer:
        """Answer one message; what it takes to go on is on disk by then."""
        try:
            with one_core_each():
                return self._handle(message)
        except (UserError, RequestRefused, SecAggError, ValueError, RuntimeError) as error:
            return Answer(refused=f"{type(error).__name__}: {error}"[:500])

    def _handle(self, message: Message) -> Answer:
        if isinstance(message, Ask):
            return self._ask(message)
        if isinstance(message, Hello):
            return Answer(encode(self._hello(message)))
        if isinstance(message, Learn):
            self._learn(message)
        elif isinstance(message, Images):
            self._take_images(message)
        else:
            return Answer(self._protocol(message))
        return Answer(b"done")

    def _protocol(self, message: Advertise | Share | Confirm | Unmask) -> bytes:
        client = self._client(message.batch)
        if isinstance(message, Advertise):
            return client.advertise_keys()
        if isinstance(message, Share):
            return client.share_keys(message.directory)
        if isinstance(message, Confirm):
            return client.confirm(message.survivors)
        return client.unmask(message.data)

    # -- the session -----------------------------------------------------------------------

    def _hello(self, message: Hello) -> Present:
        if message.version != VERSION:
            raise UserError(
                f"the server speaks version {message.version} and this site {VERSION}: "
                "install the same codream-secure on both"
            )
        known = self._session
        if known is None or known.session != message.session:
            self._begin(message)
        elif known.options != message.options or known.identities != message.identities:
            raise RequestRefused("the session is known, with other settings")
        data, own = self._settings.data, self._settings.identity
        return Present(
            version=VERSION,
            client=self._settings.client,
            spec=(data.spec.channels, data.spec.height, data.spec.width, data.spec.classes),
            scaling=(data.scaling.mean, data.scaling.std),
            identity=own.public if own else b"",
        )

    def _begin(self, message: Hello) -> None:
        """Begin a new session, and train before its first dream."""
        settings = self._settings
        if message.identities and message.identities != settings.roster:
            raise RequestRefused("the server's list of public keys is not this site's roster")
        for name in self._folder.names():
            self._folder.erase(name)
        self._session = _Session(message.session, message.options, message.identities)
        federation = self._federation()
        member, plan = federation.members[settings.client], federation.plan
        if plan is None or plan.statistics is None:
            self._warm_up(federation)
        self._save_model(_ModelState(member.client.state(), []))
        self._folder.save(_SESSION, msgspec.msgpack.encode(self._session))

    def _warm_up(self, federation: Federation) -> None:
        learner = federation.members[self._settings.client].client.learner
        for _ in range(warmup_steps(federation)):
            learner.local_step()

    def _federation(self) -> Federation:
        """Build this site's part of the run."""
        federation = Federation(
            self._config,
            self._settings.data,
            torch.device("cpu"),
            only=self._settings.client,
            whole=self._settings.whole,
        )
        if (budget := federation.budget) is not None:
            charged = self._folder.load(_CHARGED)
            budget.restore(int(charged or b"0"))
            budget.journal = lambda steps: self._folder.save(_CHARGED, str(steps).encode())
        return federation

    @property
    def _known(self) -> _Session:
        if self._session is None:
            raise RequestRefused("no session has begun")
        return self._session

    @property
    def _config(self) -> Config:
        return Config.from_options(self._known.options)

    # -- the protocol ----------------------------------------------------------------------

    def _client(self, batch: Batch) -> StoredClient:
        known, config = self._known, self._config
        settings = aggregation_settings(config)
        malicious = config.secure.threat_model == "malicious"
        params = BatchParams(
            session=known.session,
            batch=batch.number,
            steps=batch.steps,
            roster=settings.roster,
            threshold=settings.needed,
            threat_model=config.secure.threat_model,
            identities=known.identities,
        )
        policy = Policy(
            min_clients=settings.needed,
            colluders=colluders(settings),
            max_steps=settings.key_steps,
            kinds=DREAMING,
            rejoin=settings.rejoin,
        )
        party = Party(
            params,
            self._settings.client,
            identity=self._settings.identity if malicious else None,
            policy=policy if malicious else None,
        )
        return StoredClient(self._folder, party, os.urandom)

    def _ask(self, message: Ask) -> Answer:
        stored = self._client(message.batch)
        report = stored.open_bundles(message.delivery) if message.delivery else None
        request = decode_request(message.broadcast)
        task = Task(
            step=message.step,
            kind=type(request).__name__,
            sections=sections(request),
            broadcast_digest=digest(message.broadcast),
        )
        federation, _ = self._restored()
        client = federation.members[self._settings.client].client
        if client.has_answered(message.broadcast):
            # The same message again: its stored answer, or none, if the process died before.
            return Answer(stored.masked_input(message.request, task, {}), report=report or b"")
        inputs = client.answer(message.broadcast, message.step)
        if (labels := asked_labels(request)) is not None:
            self._folder.save(f"{_LABELLED}{labels.batch:06}", message.broadcast)
        self._save_asked(client.state())
        masked = stored.masked_input(message.request, task, inputs)
        return Answer(masked, report=report or b"")

    # -- learning --------------------------------------------------------------------------

    def _restored(self) -> tuple[Federation, DreamBuffer]:
        """Return the site's client as the folder has it."""
        federation = self._federation()
        client = federation.members[self._settings.client].client
        state = decode_state(self._folder.load(_MODEL) or b"", _ModelState)
        client.restore(state.client)
        asked = self._folder.load(_ASKED)
        if asked is not None:
            kept = decode_state(asked, ClientState)
            client.restore(msgspec.structs.replace(kept, learner=state.client.learner))
            client.learner.work = type(client.learner.work)(*kept.learner.work)
        client.freeze_teacher()
        buffer = DreamBuffer(federation.config.learning.buffer)
        for dreams, targets in state.buffer:
            buffer.add(dreams, targets)
        return federation, buffer

    def _save_model(self, state: _ModelState) -> None:
        self._folder.save(_MODEL, encode_state(state))
        self._folder.erase(_ASKED)

    def _save_asked(self, state: ClientState) -> None:
        """Save what answering changes: not the model, which stays what it is within a round."""
        small = msgspec.structs.replace(state.learner, model={}, optimizer={}, data=None)
        self._folder.save(_ASKED, encode_state(msgspec.structs.replace(state, learner=small)))

    def _learn(self, message: Learn) -> None:
        if self._known.rounds >= message.round:
            return  # the same message again
        federation, buffer = self._restored()
        client = federation.members[self._settings.client].client
        for encoded in message.labels:
            found = msgspec.msgpack.decode(encoded, type=SoftLabels)
            broadcast = self._folder.load(f"{_LABELLED}{found.batch:06}")
            request = None if broadcast is None else asked_labels(decode_request(broadcast))
            if request is None or request.round != found.round:
                continue  # this site was not there when these dreams were labelled
            dreams = federation.scale.from_pixels(
                np.frombuffer(request.dreams, np.uint8).reshape(request.shape)
            )
            buffer.add(dreams, _targets(request, found, federation))
        settings = acquisition_settings(federation, message.round)
        seed = federation.config.run.seed or 0
        shuffle = generator(seed, "acquisition", message.round, self._settings.client)
        acquire(client.learner, buffer, settings, shuffle)
        self._save_model(_ModelState(client.state(), buffer.state()))
        self._session = msgspec.structs.replace(self._known, rounds=message.round)
        self._folder.save(_SESSION, msgspec.msgpack.encode(self._session))

    def _take_images(self, message: Images) -> None:
        federation, buffer = self._restored()
        plan, settings = federation.plan, self._settings
        if plan is None or plan.statistics is None or self._known.rounds:
            raise RequestRefused("no class means are due")
        client = federation.members[settings.client].client
        if client.learner.local_steps:
            return  # the same message again
        if message.count:
            totals = np.frombuffer(message.totals, "<u4").astype(np.uint32)
            images = ClassImages.decode(
                totals, message.count, plan.statistics, federation.per_class
            )
            draw = generator(federation.config.run.seed or 0, "class images", settings.client)
            learn_images(client.learner, images, federation.scale, draw)
        self._warm_up(federation)
        self._save_model(_ModelState(client.state(), buffer.state()))


def _targets(request: LabelRequest, found: SoftLabels, federation: Federation) -> torch.Tensor:
    public = sections(request)
    totals = {}
    for section, packed in zip(public, found.totals, strict=True):
        field = PrimeField.for_sum(len(federation.roster), section.maximum)
        totals[section.name] = unpack(packed, field.bits, section.length)
    mean = label_mean(FieldSum(totals, found.count, public), request)
    return soft_targets(mean, request)


def aggregation_settings(config: Config) -> AggregationSettings:
    """Return who takes part, as both sides derive it from the run's settings."""
    secure, dream = config.secure, config.dream
    per_batch = set_(dream.dream_steps) + (not dream.label_last_step)
    per_round = per_batch * set_(dream.dream_batches)
    statistics = bool(config.private_training and config.privacy.statistics_eps)
    return AggregationSettings(
        roster=tuple(range(config.data.clients)),
        threshold=secure.threshold,
        threat_model=secure.threat_model,
        rejoin=secure.rejoin,
        key_steps=secure.key_steps or per_batch,
        expected_steps=set_(dream.rounds) * per_round + statistics,
        seed=config.run.seed or 0,
    )
