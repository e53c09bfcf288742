"""The site that dreams: it begins runs, answers dream and label requests, and learns.

Messages of the protocol alone are answered without PyTorch. So this module imports what needs
PyTorch inside the functions that use it.
"""

from typing import TYPE_CHECKING

from codream_secure.errors import RequestRefused
from codream_secure.sites import allowance
from codream_secure.sites.session import SiteSettings
from codream_secure.sites.site import Site
from codream_secure.sites.summand import Compute
from codream_secure.sites.wire import Ask, Begin, Hello, Images, Learn, Present, encode
from protocols.params import Task, default_threshold
from protocols.policy import most_colluders

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
            return encode(self._hello(message))
        self._remember(self._learner().learn_from(message))
        return b"done"

    def _contribution(self, message: Ask) -> tuple[Task, Compute]:
        return self._learner().answer(message)

    def _hello(self, message: Hello) -> Present:
        """Begin a run, or find that it has begun."""
        if self._in_session(message.session):
            known = self._current
            asked = message.options, message.spec, message.identities
            if (known.options, known.spec, known.identities) != asked:
                raise RequestRefused("the session is known, with other settings")
            return self._learner().present()
        from codream_secure.sites.stored_learner import StoredLearner  # noqa: PLC0415 - PyTorch

        options = message.options
        self._check_terms(
            message,
            threat_model=options.get("threat_model"),
            threshold=options.get("threshold"),
            rejoin=options.get("rejoin"),
        )
        if self._settings.allowance is not None:
            # Charged before anything is trained, so that a crash cannot make training free.
            colluders = self._colluders(options.get("threshold"))
            self._settings.allowance.charge(
                self._folder, message.session, options, colluders=colluders
            )
        self._erase_records(keep=allowance.RECORD)
        learner = StoredLearner.begin(self._settings, self._folder, message)
        self._remember(learner.session)
        return learner.present()

    def _colluders(self, threshold: object) -> int | None:
        """Return n_C of the roster; None without one, since then nobody knows who takes part."""
        clients = len(self._settings.roster)
        if self._settings.identity is None:
            return None
        needed = threshold if isinstance(threshold, int) else default_threshold(clients)
        return most_colluders(clients, needed, "malicious")

    def _learner(self) -> "StoredLearner":
        from codream_secure.sites.stored_learner import StoredLearner  # noqa: PLC0415 - PyTorch

        return StoredLearner(self._settings, self._folder, self._current)
