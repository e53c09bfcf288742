"""The site that dreams: it begins runs, answers dream and label requests, and learns.

Messages of the protocol alone are answered without PyTorch. So this module imports what needs
PyTorch inside the functions that use it.
"""

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
from codream_secure.sites.wire import Ask, Begin, Hello, Images, Learn, Present, encode
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
        self._remember(self._learner().learn_from(message))
        return b"done"

    def _contribution(self, message: Ask) -> tuple[Task, Compute]:
        def check(request: AskedOfClient, task: Task) -> None:
            check_task(self._site_policy, task)
            check_request(self._site_policy, request)
            contents.admit(self._folder, contents.of_request(request))

        return self._learner().answer(message, check)

    def _hello(self, message: Hello) -> Present:
        """Begin a run, or find that it has begun."""
        if self._in_session(message.session):
            known = self._current
            asked = message.options, message.spec, message.identities
            if (known.options, known.spec, known.identities) != asked:
                raise RequestRefused("the session is known, with other settings")
            return self._learner().present()
        from codream_secure.sites.stored_learner import StoredLearner  # noqa: PLC0415 - PyTorch

        self._check_server(message, message.options.get("threat_model"))
        session, options = StoredLearner.proposed(message)
        check_terms(self._site_policy, session.terms)
        own_model = self._settings.model is not None
        check_options(self._site_policy, options, own_model=own_model)
        site_log.check_admission(self._folder, self._site_policy, message.session)
        self._charge(session, options)
        epsilon, delta = options.get("dp_eps"), options.get("dp_delta")
        if isinstance(epsilon, float) and isinstance(delta, float):
            self._start(session, epsilon=epsilon, delta=delta)
        else:
            self._start(session)
        learner = StoredLearner.begin(self._settings, self._folder, session)
        self._remember(learner.session)
        return learner.present()

    def _charge(self, session: Session, options: Mapping[str, object]) -> None:
        """Charge the run's epsilon before anything is trained: a crash must not make it free."""
        policy = self._site_policy
        if policy.epsilon is None:
            return
        allowance.Allowance(policy.epsilon, policy.delta).charge(
            self._folder,
            session.session,
            options,
            # Without a roster nobody knows who takes part.
            colluders=session.terms.colluders if self._settings.roster else None,
        )

    def _learner(self) -> "StoredLearner":
        from codream_secure.sites.stored_learner import StoredLearner  # noqa: PLC0415 - PyTorch

        return StoredLearner(self._settings, self._folder, self._current)
