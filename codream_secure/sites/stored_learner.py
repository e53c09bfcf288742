"""A site's model and data: how it answers requests and learns; its state lives in its folder."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import cached_property
from typing import Self

import msgspec
import numpy as np
import torch

from codream_secure.aggregation.aggregator import Call
from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import (
    AskedOfClient,
    DreamRequest,
    EvaluateRequest,
    LabelRequest,
    asked_labels,
    digest,
    pixels,
)
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset
from codream_secure.data.spec import InputSpec
from codream_secure.dreaming.buffer import DreamBuffer
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import RequestRefused, UserError
from codream_secure.federation.answer_rules import AnswerRules
from codream_secure.federation.members import Federation
from codream_secure.learning.acquisition import acquire, learn_images
from codream_secure.learning.schedule import acquisition_settings, warmup_steps
from codream_secure.models.evaluate import accuracy
from codream_secure.privacy.class_means import ClassMeanImages
from codream_secure.runtime.parallel import one_core_each
from codream_secure.runtime.seeds import generator
from codream_secure.sites import pending
from codream_secure.sites.history import SIZE, after, name_of
from codream_secure.sites.kept_model import keep_model
from codream_secure.sites.run_terms import run_label_plan
from codream_secure.sites.session import Session, SiteSettings
from codream_secure.sites.summand import Compute, Contribution, whatever_happens
from codream_secure.sites.told_labels import Told
from codream_secure.sites.wire import (
    VERSION,
    Ask,
    Images,
    Learn,
    Lesson,
    Present,
    dreaming_step,
)
from codream_secure.storage.checkpoint import ClientState, Pair, decode_state, encode_state
from codream_secure.storage.state_folder import StateFolder
from protocols.params import Task

_log = logging.getLogger(__name__)

# Records in the site's folder: the state between two rounds; names of all requests that the session
# has had; how many private training steps are charged.
_MODEL, _ANSWERED, _CHARGED = "model", "answered", "charged"
# In a run without a seed: 32 secret bytes that rounding follows from, in place of the seed (SPEC
# 7.3). A server that knew them could predict the rounding.
_ROUNDING = "rounding"
# Requests for labels, by name: the labels come back when the round ends.
_LABELLED = "labelled-"


class _ModelState(msgspec.Struct, frozen=True):
    """What a site keeps between two rounds: its client, and the dreams that it trains on."""

    client: ClientState
    buffer: list[Pair]


class StoredLearner:
    """The dreaming client of one site; every method restores it from the folder.

    Args:
        settings: what the site brings.
        folder: the site's, locked by this process.
        session: the run.

    Attributes:
        session: the run as the site remembers it; the caller stores it.

    Raises:
        RequestRefused: the data do not have the run's shape.
    """

    def __init__(self, settings: SiteSettings, folder: StateFolder, session: Session) -> None:
        self.session = session
        self._settings, self._folder = settings, folder
        self._config = resolve(Config.from_options(session.options))

    @cached_property
    def _data(self) -> Dataset:
        data = self._settings.load()
        return _of_shape(data, InputSpec(*self.session.spec), self._settings.classes)

    @classmethod
    def begin(cls, settings: SiteSettings, folder: StateFolder, session: Session) -> Self:
        """Begin a run, and train before its first dream.

        Raises:
            RequestRefused: data of another shape.
            UserError: settings that the site's data do not fit.
        """
        self = cls(settings, folder, session)
        with one_core_each():
            if self._config.run.seed is None:
                folder.save(_ROUNDING, os.urandom(32))
            federation = self._federation()
            if federation.plan is None or federation.plan.class_means is None:
                self._warm_up(federation)
            else:  # training begins with the class means, see `_begin_training`
                self.session = msgspec.structs.replace(session, begun=False)
            self._save(federation.members[settings.client].client.state(), DreamBuffer(1))
        return self

    def present(self) -> Present:
        """Return what the server may know of the site: the shape of its data, nothing in them."""
        data = self._data
        return Present(
            version=VERSION,
            client=self._settings.client,
            spec=(data.spec.channels, data.spec.height, data.spec.width, data.spec.classes),
            scaling=(data.scaling.mean, data.scaling.std),
            received=self.session.received,
        )

    def answer(
        self, message: Ask, broadcast: bytes, check: Callable[[AskedOfClient, Task], None]
    ) -> tuple[Task, Compute]:
        """Check a request; return what is summed, and what computes this site's input.

        The checks see public facts alone: data and model are read only when the protocol has
        nothing to refuse any more.

        Args:
            message: has the request.
            broadcast: the request.
            check: of the site's policy.

        Raises:
            RequestRefused: the rules of the run or the site's policy forbid the request.
        """
        request = decode_request(broadcast)
        self._check_request(request, message.step)
        task = replace(
            Call(message.step, request, broadcast).task, broadcast_digest=digest(message.broadcast)
        )
        check(request, task)
        if isinstance(request, DreamRequest | LabelRequest):
            spec = InputSpec(*self.session.spec)
            AnswerRules.of(self._config, spec, self._config.data.samples_per_client or 0).check(
                request
            )
            self._check_noisy(request, spec, broadcast)
        return task, lambda: self._contribution(request, broadcast, dreaming_step(message.step))

    def _check_noisy(
        self, request: DreamRequest | LabelRequest, spec: InputSpec, broadcast: bytes
    ) -> None:
        """Refuse a noisy sum on other terms than the run's, or one more than it has.

        Raises:
            RequestRefused: which of the two.

        Guarantee:
            What the site contributes is then private for it as a whole, as `label_plan` says: clip,
            noise and number of sums follow from the settings that its `Allowance` was charged for.
        """
        if request.labels is None or request.labels.noisy is None:
            return
        if name_of(broadcast) in self._answered():
            return  # its stored answer is sent again, which is no other release
        plan = run_label_plan(self._config, spec)
        if plan is None:
            return
        own = plan.share(self._settings.client)
        plan.restore(self._charged)
        own.check(request.labels.noisy)

    def _contribution(self, request: AskedOfClient, broadcast: bytes, step: int) -> Contribution:
        """Compute the site's input.

        Raises:
            RequestRefused: the process died before an answer was stored, the same was asked under
                another number (D1), or the class means are asked for on other terms.
        """
        name, answered = name_of(broadcast), self._answered()
        if name in answered:
            raise RequestRefused("this broadcast was answered before in this session")
        self._folder.extend(_ANSWERED, name, len(answered) * SIZE)
        federation, _ = self._restored()
        client = federation.members[self._settings.client].client
        client.measure = lambda: self._accuracy(federation)
        faults: list[str] = []
        with one_core_each():
            # An error over private data must not show; the operator is told (`Contribution`).
            client.failed = lambda error: faults.append(f"{type(error).__name__}: {error}")
            inputs = client.compute(client.admit(broadcast), broadcast, step)
        if asked_labels(request) is not None:
            self._folder.save(_LABELLED + name.hex(), broadcast)
        state = encode_state(_without_model(client.state()))
        return Contribution(inputs, client.repaired, tuple(faults), state)

    def _answered(self) -> list[bytes]:
        """Return the names of all requests of the session, without one that was cut off."""
        kept = self._folder.load(_ANSWERED) or b""
        return [kept[at : at + SIZE] for at in range(0, len(kept) // SIZE * SIZE, SIZE)]

    def request(self, name: bytes) -> bytes | None:
        """Return a request for labels that the site was asked in this round, by its name."""
        return self._folder.load(_LABELLED + name.hex())

    def _check_request(self, request: AskedOfClient, step: int) -> None:
        """Allow one evaluation a round, and only steps that have a rounding stream of their own.

        Rounding streams follow from the step of dreaming, which is half the protocol's step. So
        an odd step, which evaluations have, must be no other request.
        """
        evaluation = isinstance(request, EvaluateRequest)
        if evaluation != bool(step % 2):
            raise RequestRefused("evaluations have odd steps, and nothing else has")
        if isinstance(request, EvaluateRequest) and request.round != self.session.rounds:
            raise RequestRefused(
                f"round {request.round} is not the one that this site has finished"
            )

    def learn_from(self, message: Lesson, told: Sequence[Told] = ()) -> Session:
        """Train on what the server sends; return the session as it is then.

        Args:
            message: the next one that the site has not learned from.
            told: the dreams and labels in it, checked.

        Raises:
            RequestRefused: class means are not expected.
        """
        with one_core_each():
            if isinstance(message, Images):
                return self._begin_training(message)
            return self._learn_round(message, told)

    def _warm_up(self, federation: Federation) -> None:
        learner = federation.members[self._settings.client].client.learner

        def train() -> None:
            for _ in range(warmup_steps(federation.config, federation.plan, federation.share)):
                learner.local_step()

        whatever_happens(train)

    def _federation(self) -> Federation:
        """Build this site's part of the run, untrained.

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
            budget.restore(self._charged)
            budget.journal = lambda steps: self._folder.save(_CHARGED, str(steps).encode())
            if (plan := federation.label_plan) is not None:
                plan.journal_shares(budget.journal)
        return federation

    @property
    def _charged(self) -> int:
        """Private steps, or noisy sums, that the session has been charged."""
        return int(self._folder.load(_CHARGED) or b"0")

    def _restored(self) -> tuple[Federation, DreamBuffer]:
        """Return the site's part of the run and its dreams, as the folder has them."""
        federation = self._federation()
        client = federation.members[self._settings.client].client
        state = decode_state(self._folder.load(_MODEL) or b"", _ModelState)
        client.restore(state.client)
        stored = self._folder.load(pending.STATE)
        if stored is not None:
            later = decode_state(stored, ClientState)
            # It has no model of its own: the model does not change within a round.
            client.restore(msgspec.structs.replace(later, learner=state.client.learner))
            client.learner.work = type(client.learner.work)(*later.learner.work)
        client.freeze_teacher()
        buffer = DreamBuffer(federation.config.learning.buffer)
        for dreams, labels in state.buffer:
            buffer.add(dreams, labels)
        return federation, buffer

    def _save(self, state: ClientState, buffer: DreamBuffer) -> None:
        self._folder.save(_MODEL, encode_state(_ModelState(state, buffer.state())))
        self._folder.erase(pending.STATE)

    def _learn_round(self, message: Learn, told: Sequence[Told]) -> Session:
        """Train on the dreams of a finished round, with their summed labels."""
        federation, buffer = self._restored()
        client = federation.members[self._settings.client].client
        for request, targets in told:
            labelled = LabelledDreams(pixels(request), targets)
            for batch in labelled.split(request.batches):
                buffer.add(federation.scale.from_pixels(batch.pixels), batch.targets)
        settings = acquisition_settings(
            federation.config, federation.plan, federation.share, message.round
        )
        seed = federation.config.run.seed or 0
        shuffle = generator(seed, "acquisition", message.round, self._settings.client)
        whatever_happens(lambda: acquire(client.learner, buffer, settings, shuffle))
        self._save(client.state(), buffer)
        # Whatever goes wrong with the folder that stays, the site has learned and answers so.
        whatever_happens(lambda: self._keep_model(federation, message.round))
        for name in self._folder.names():
            if name.startswith(_LABELLED):
                self._folder.erase(name)
        return msgspec.structs.replace(self._after(message), rounds=message.round)

    def _keep_model(self, federation: Federation, number: int) -> None:
        site = self._settings
        keep_model(federation, site.client, site.folder, number, self._accuracy(federation))

    def _after(self, message: Lesson) -> Session:
        """Return the session with one more message in its record."""
        before = self.session
        history = after(before.history, message)
        return msgspec.structs.replace(before, history=history, received=before.received + 1)

    def _begin_training(self, message: Images) -> Session:
        """Train before the first dream, on class means if their sum was not aborted."""
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
            whatever_happens(lambda: learn_images(client.learner, images, federation.scale, draw))
        self._warm_up(federation)
        self._save(client.state(), buffer)
        return msgspec.structs.replace(self._after(message), begun=True)

    def _accuracy(self, federation: Federation) -> float | None:
        """Return the accuracy of the site's model on its test part, 0 to 1; None: it tells none.

        Guarantee:
            Under DP it is None, unless the test part belongs to the run's public dataset. Then it
            is a function of a private model and of public data alone. With clients as the unit it
            is None: models are then trained without noise.
        """
        if self._config.private_clients or (self._config.private and self._settings.whole):
            return None
        model = federation.members[self._settings.client].client.learner.frozen_copy()
        images, labels = self._data.x_test, self._data.y_test
        if not len(labels):
            return None
        return accuracy(model, federation.scale.examples(images, labels))


def _without_model(state: ClientState) -> ClientState:
    """Return what answering changes; the model does not change within a round."""
    small = msgspec.structs.replace(state.learner, model={}, optimizer={}, data=None)
    return msgspec.structs.replace(state, learner=small)


def _of_shape(data: Dataset, wanted: InputSpec, configured: int | None) -> Dataset:
    """Return the data with the run's classes; a site may have examples of only some of them.

    Labels beyond the run's last class become the last class. A refusal would tell the server the
    largest label, which may be that of one example.

    Raises:
        RequestRefused: the images have another shape.
        UserError: a label beyond the number of classes that the site is configured for.
    """
    own = data.spec
    if replace(own, classes=wanted.classes) != wanted:
        _log.error("the data have the shape %s, and the run's %s", astuple(own), astuple(wanted))
        raise RequestRefused("its images do not have the run's shape; see the site's log")
    labels = (data.y_train, data.y_test)
    largest = max(int(part.max(initial=0)) for part in labels)
    if configured is not None and largest >= configured:
        raise UserError(f"label {largest} in data that are configured for {configured} classes")
    if largest >= wanted.classes:
        _log.warning("labels up to %s, and the run has %s classes", largest, wanted.classes)
    train, test = (np.minimum(part, wanted.classes - 1) for part in labels)
    return replace(data, spec=wanted, y_train=train, y_test=test)
