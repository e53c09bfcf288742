"""A site's model and data: what it answers, and how it learns; all of it from its folder."""

import os
from dataclasses import astuple, replace
from typing import Self

import msgspec
import numpy as np
import torch

from codream_secure.aggregation.aggregator import DREAMING, Call, FieldSum
from codream_secure.aggregation.requests import (
    AskedOfClient,
    EvaluateRequest,
    LabelRequest,
    SoftLabels,
    asked_labels,
    decode_request,
    digest,
    pixels,
    sections,
)
from codream_secure.aggregation.settings import AggregationSettings, colluders
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset
from codream_secure.data.spec import InputSpec
from codream_secure.dreaming.buffer import DreamBuffer
from codream_secure.dreaming.labels import label_mean, soft_targets
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import RequestRefused
from codream_secure.federation.members import Federation
from codream_secure.learning.acquisition import acquire, learn_images
from codream_secure.learning.schedule import acquisition_settings, warmup_steps
from codream_secure.models.evaluate import accuracy
from codream_secure.privacy.class_means import ClassMeanImages
from codream_secure.runtime.parallel import one_core_each
from codream_secure.runtime.seeds import generator
from codream_secure.sites.history import after, asked, beginning
from codream_secure.sites.session import Session, SiteSettings, Terms, check_version
from codream_secure.sites.wire import VERSION, Ask, Hello, Images, Learn, Present, dreaming_step
from codream_secure.storage.checkpoint import ClientState, Pair, decode_state, encode_state
from codream_secure.storage.state_folder import StateFolder
from protocols.client.step import Inputs
from protocols.params import Task
from protocols.primitives.field import PrimeField
from protocols.primitives.packing import unpack

_MODEL, _ASKED, _CHARGED = "model", "asked", "charged"
# Where the run has no seed, 32 bytes in place of what would follow from it (SPEC 7.3).
_ROUNDING = "rounding"
_LABELLED = "labelled-"


class _ModelState(msgspec.Struct, frozen=True):
    """Between two rounds."""

    client: ClientState
    buffer: list[Pair]


class Learning:
    """The client of one site.

    Args:
        settings: what the site brings.
        folder: locked by this process.
        session: the run.

    Raises:
        UserError: the data do not fit the run.
    """

    def __init__(self, settings: SiteSettings, folder: StateFolder, session: Session) -> None:
        self.session = session
        self._settings, self._folder = settings, folder
        self._data = _of_shape(settings.load(), InputSpec(*session.spec))
        self._config = resolve(Config.from_options(session.options))

    @classmethod
    def begin(cls, settings: SiteSettings, folder: StateFolder, message: Hello) -> Self:
        """Begin a run, and train before its first dream.

        Raises:
            UserError: another version, or settings that the site's data do not fit.
        """
        check_version(message.version)
        asked_for = Config.from_options(message.options)
        _check_run(asked_for, settings)
        config = resolve(asked_for)
        terms = _terms(aggregation_settings(config, evaluates=True))
        session = Session(
            session=message.session,
            options=message.options,
            spec=message.spec,
            identities=message.identities,
            terms=terms,
            history=beginning(message),
        )
        self = cls(settings, folder, session)
        with one_core_each():
            if config.run.seed is None:
                folder.save(_ROUNDING, os.urandom(32))
            federation = self._federation()
            if federation.plan is None or federation.plan.class_means is None:
                self._warm_up(federation)
            else:  # it begins with the class means, see `_take_images`
                self.session = msgspec.structs.replace(session, begun=False)
            self._save(federation.members[settings.client].client.state(), DreamBuffer(1))
        return self

    def present(self) -> Present:
        """Return what the server may know of the site."""
        data, own = self._data, self._settings.identity
        return Present(
            version=VERSION,
            client=self._settings.client,
            spec=(data.spec.channels, data.spec.height, data.spec.width, data.spec.classes),
            scaling=(data.scaling.mean, data.scaling.std),
            identity=own.public if own else b"",
            heard=self.session.heard,
        )

    def answer(self, message: Ask) -> tuple[Task, Inputs]:
        """Return what is summed, and this site's part; that it was asked is on disk by then.

        A request that was answered before gets no inputs: its stored answer is sent again.
        """
        broadcast = asked(self.session.history, message.broadcast)
        request = decode_request(broadcast)
        self._check_request(request, message.step)
        task = replace(
            Call(message.step, request, broadcast).task, broadcast_digest=digest(message.broadcast)
        )
        with one_core_each():
            federation, _ = self._restored()
            client = federation.members[self._settings.client].client
            if client.has_answered(broadcast):
                return task, {}
            client.measure = lambda: self._accuracy(federation)
            inputs = client.answer(broadcast, dreaming_step(message.step))
        if (labels := asked_labels(request)) is not None:
            self._folder.save(f"{_LABELLED}{labels.batch:06}", broadcast)
        self._save_asked(client.state())
        return task, inputs

    def _check_request(self, request: AskedOfClient, step: int) -> None:
        """Refuse evaluations but one a round, and steps that would share a rounding stream."""
        evaluation = isinstance(request, EvaluateRequest)
        if evaluation != bool(step % 2):
            raise RequestRefused("evaluations have odd steps, and nothing else has")
        if isinstance(request, EvaluateRequest) and request.round != self.session.rounds:
            raise RequestRefused(
                f"round {request.round} is not the one that this site has finished"
            )

    def take(self, message: Learn | Images) -> Session:
        """Learn from what the server sends; returns the session as it is then."""
        with one_core_each():
            return self._begin(message) if isinstance(message, Images) else self._learn(message)

    def _warm_up(self, federation: Federation) -> None:
        learner = federation.members[self._settings.client].client.learner
        for _ in range(warmup_steps(federation.config, federation.plan, federation.share)):
            learner.local_step()

    def _federation(self) -> Federation:
        """Build this site's part of the run.

        Raises:
            RequestRefused: the folder lacks the session's secret.
        """
        rounding = self._folder.load(_ROUNDING)
        if self._config.run.seed is None and rounding is None:
            raise RequestRefused("the folder has no secret for rounding: begin a new run")
        federation = Federation(
            self._config,
            self._data,
            torch.device("cpu"),
            only=self._settings.client,
            whole=self._settings.whole,
            model=self._settings.model,
            rounding=rounding,
        )
        if (budget := federation.budget) is not None:
            charged = self._folder.load(_CHARGED)
            budget.restore(int(charged or b"0"))
            budget.journal = lambda steps: self._folder.save(_CHARGED, str(steps).encode())
        return federation

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

    def _save(self, state: ClientState, buffer: DreamBuffer) -> None:
        self._folder.save(_MODEL, encode_state(_ModelState(state, buffer.state())))
        self._folder.erase(_ASKED)

    def _save_asked(self, state: ClientState) -> None:
        """Save what answering changes: not the model, which stays what it is within a round."""
        small = msgspec.structs.replace(state.learner, model={}, optimizer={}, data=None)
        self._folder.save(_ASKED, encode_state(msgspec.structs.replace(state, learner=small)))

    def _learn(self, message: Learn) -> Session:
        if self.session.rounds >= message.round:
            return self.session  # the same message again
        if message.round != self.session.rounds + 1:
            raise RequestRefused(f"round {self.session.rounds + 1} comes first")
        federation, buffer = self._restored()
        client = federation.members[self._settings.client].client
        for encoded in message.labels:
            found = msgspec.msgpack.decode(encoded, type=SoftLabels)
            broadcast = self._folder.load(f"{_LABELLED}{found.batch:06}")
            request = None if broadcast is None else asked_labels(decode_request(broadcast))
            if request is None or digest(request.dreams) != found.dreams:
                continue  # this site was not there when these dreams were labelled
            labelled = LabelledDreams(pixels(request), _targets(request, found, federation))
            for batch in labelled.split(request.batches):
                buffer.add(federation.scale.from_pixels(batch.pixels), batch.targets)
        settings = acquisition_settings(
            federation.config, federation.plan, federation.share, message.round
        )
        seed = federation.config.run.seed or 0
        shuffle = generator(seed, "acquisition", message.round, self._settings.client)
        acquire(client.learner, buffer, settings, shuffle)
        self._save(client.state(), buffer)
        return msgspec.structs.replace(self._told(message), rounds=message.round)

    def _told(self, message: Learn | Images) -> Session:
        known = self.session
        history = after(known.history, message)
        return msgspec.structs.replace(known, history=history, heard=known.heard + 1)

    def _begin(self, message: Images) -> Session:
        """Train before the first dream, from class means if they came to a sum."""
        if self.session.begun:
            return self.session  # the same message again
        federation, buffer = self._restored()
        plan, settings = federation.plan, self._settings
        if plan is None or plan.class_means is None:
            raise RequestRefused("no class means are due")
        client = federation.members[settings.client].client
        if message.count:
            totals = np.frombuffer(message.totals, "<u4").astype(np.uint32)
            per_class = federation.per_class
            images = ClassMeanImages.decode(totals, message.count, plan.class_means, per_class)
            draw = generator(federation.config.run.seed or 0, "class images", settings.client)
            learn_images(client.learner, images, federation.scale, draw)
        self._warm_up(federation)
        self._save(client.state(), buffer)
        return msgspec.structs.replace(self._told(message), begun=True)

    def _accuracy(self, federation: Federation) -> float | None:
        """Return how well the site's model does on its test part.

        Guarantee:
            Under DP None, unless the test part is that of the run's public dataset: then it is a
            function of a private model and of public data alone.
        """
        if federation.config.private and self._settings.whole:
            return None
        model = federation.members[self._settings.client].client.learner.frozen_copy()
        images, labels = self._data.x_test, self._data.y_test
        if not len(labels):
            return None
        return accuracy(model, federation.scale.examples(images, labels))


def _check_run(config: Config, settings: SiteSettings) -> None:
    """Refuse what no honest server asks for; a site does not rely on its server's own checks.

    Raises:
        RequestRefused: sums in the clear, clients as the unit, or code that the server names.
    """
    if reason := unfit_for_machines(config):
        raise RequestRefused(reason)
    if ":" in config.model.models and settings.model is None:
        raise RequestRefused("a function that makes models is this site's to name: model=...")


def _of_shape(data: Dataset, wanted: InputSpec) -> Dataset:
    """Return data of the run's shape; a site may have examples of some classes alone.

    Raises:
        RequestRefused: they have another shape, or classes that the run does not have.
    """
    own = data.spec
    if replace(own, classes=wanted.classes) != wanted or own.classes > wanted.classes:
        raise RequestRefused(
            f"its data have the shape {astuple(own)}, and the run's {astuple(wanted)}"
        )
    return replace(data, spec=wanted)


def _targets(request: LabelRequest, found: SoftLabels, federation: Federation) -> torch.Tensor:
    public = sections(request)
    totals = {}
    for section, packed in zip(public, found.totals, strict=True):
        field = PrimeField.for_sum(len(federation.roster), section.maximum)
        totals[section.name] = unpack(packed, field.bits, section.length)
    mean = label_mean(FieldSum(totals, found.count, public), request)
    return soft_targets(mean, request)


def _terms(settings: AggregationSettings) -> Terms:
    return Terms(
        clients=len(settings.roster),
        threshold=settings.needed,
        threat_model=settings.threat_model,
        colluders=colluders(settings),
        key_steps=settings.key_steps,
        rejoin=settings.rejoin,
        kinds=tuple(sorted({*DREAMING, EvaluateRequest.__name__})),
    )


def unfit_for_machines(config: Config) -> str:
    """Return why a run can be simulated only; empty if it can be run over machines."""
    if not (config.secure.secure and config.dream.collaboration):
        return "over machines sums are always masked, and dreams made together"
    if config.private_clients:
        return "--dp-unit client is for simulations; over machines use example"
    return ""


def aggregation_settings(config: Resolved, *, evaluates: bool) -> AggregationSettings:
    """Return who takes part and how many sums there are, from the run's settings.

    Args:
        config: resolved.
        evaluates: whether sites are asked for accuracies, once a round.
    """
    secure, dream = config.secure, config.dream
    per_round = dream.syntheses * dream.sums_per_synthesis + evaluates
    statistics = bool(config.private_training and config.privacy.statistics_eps)
    return AggregationSettings(
        roster=tuple(range(config.data.clients)),
        threshold=secure.threshold,
        threat_model=secure.threat_model,
        rejoin=secure.rejoin,
        key_steps=secure.key_steps or per_round,
        expected_steps=dream.rounds * per_round + statistics,
        seed=config.run.seed or 0,
    )
