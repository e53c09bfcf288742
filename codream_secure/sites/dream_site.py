"""The site that dreams: it begins runs, answers dream and label requests, and learns.

Messages of the protocol alone are answered without PyTorch. So this module imports what needs
PyTorch inside the functions that use it.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from codream_secure.aggregation.requests import AskedOfClient
from codream_secure.errors import RequestRefused
from codream_secure.sites import allowance, contents, site_log
from codream_secure.sites.presence import proof_of
from codream_secure.sites.proposals import check_options, check_request, check_task, check_terms
from codream_secure.sites.session import Session, SiteSettings
from codream_secure.sites.site import Site
from codream_secure.sites.summand import Compute
from codream_secure.sites.wire import (
    DONE,
    NEEDS,
    Ask,
    Begin,
    Hello,
    Images,
    Learn,
    Lesson,
    Present,
    encode,
)
from protocols.params import Task

if TYPE_CHECKING:
    from codream_secure.sites.stored_learner import StoredLearner


class DreamSite(Site):
    """A site of a CoDream run: a `Site` whose inputs come from its own model and data.

    Args:
        settings: what the site brings.
        patience: seconds to wait for a process that still answers an earlier message.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, settings: SiteSettings, *, patience: float = 0.0) -> None:
        super().__init__(settings, patience=patience)

    def _handle_session(self, message: Begin | Hello | Learn | Images) -> bytes:
        if isinstance(message, Begin):
            raise RequestRefused("this site takes part in runs of codream only")
        if isinstance(message, Hello):
            proof = proof_of(self._settings, message.session, message.nonce)
            return encode(msgspec.structs.replace(self._hello(message), proof=proof))
        return self._learn(message)

    def _learn(self, message: Lesson) -> bytes:
        """Train on what the server sends, once all of it is there."""
        from codream_secure.sites import told_labels  # noqa: PLC0415 - PyTorch

        if self._current.has_learned(message):
            return DONE  # the same message again
        learner, told = self._learner(), []
        if isinstance(message, Learn):
            terms, follower = self._current.terms, self._following.follower
            checks = told_labels.LabelChecks(
                batch=follower.batch,
                colluders=terms.colluders if terms.threat_model == "malicious" else 0,
                finished=follower.follow(self._current, message.missed, None).finished,
                kept=learner.request,
                policy=lambda request: check_request(self._site_policy, request),
            )
            try:
                told = checks.told(message)
            except told_labels.LacksRequestsError as error:
                return NEEDS + b"".join(error.names)
        self._follow(message.missed, None)
        self._remember(self._learner().learn_from(message, told))
        self._following.follower.begin_again()
        return DONE

    def _contribution(self, message: Ask, request: bytes) -> tuple[Task, Compute]:
        def check(asked: AskedOfClient, task: Task) -> None:
            check_task(self._site_policy, task)
            check_request(self._site_policy, asked)
            contents.admit(self._folder, contents.of_request(asked))
            self._following.admit(message, asked)

        return self._learner().answer(message, request, check)

    def _hello(self, message: Hello) -> Present:
        """Begin a run, or find that it has begun."""
        if self._in_session(message.session):
            known = self._current
            asked = message.options, message.spec, message.identities
            if (known.options, known.spec, known.identities) != asked:
                raise RequestRefused("the session is known, with other settings")
            return self._learner().present()
        from codream_secure.sites.run_terms import proposed  # noqa: PLC0415 - PyTorch
        from codream_secure.sites.stored_learner import StoredLearner  # noqa: PLC0415 - PyTorch

        self._check_server(message, message.options.get("threat_model"))
        session, options, costs = proposed(message)
        if self._settings.classes not in (None, message.spec[3]):
            raise RequestRefused("the run has another number of classes than this site")
        check_terms(self._site_policy, session.terms)
        own_model = self._settings.model is not None
        check_options(self._site_policy, options, own_model=own_model)
        site_log.check_admission(self._folder, self._site_policy, message.session)
        self._charge(session, options, costs)
        if costs is None:
            self._start(session)
        else:
            of_site = math.isfinite(costs.client)
            epsilon, unit = (costs.client, "client") if of_site else (costs.example, "example")
            self._start(session, epsilon=epsilon, delta=costs.delta, unit=unit)
        learner = StoredLearner.begin(self._settings, self._folder, session)
        self._remember(learner.session)
        return learner.present()

    def _charge(
        self, session: Session, options: Mapping[str, object], costs: allowance.Costs | None
    ) -> None:
        """Charge the run's epsilon before anything is trained: a crash must not make it free."""
        policy = self._site_policy
        allowance.Allowance(policy.epsilon, policy.delta, policy.unit).charge(
            self._folder,
            session.session,
            options,
            costs,
            # Without a roster nobody knows who takes part.
            colluders=session.terms.colluders if self._settings.roster else None,
        )

    def _learner(self) -> "StoredLearner":
        from codream_secure.sites.stored_learner import StoredLearner  # noqa: PLC0415 - PyTorch

        return StoredLearner(self._settings, self._folder, self._current)
