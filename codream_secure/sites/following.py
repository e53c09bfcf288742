"""How a site follows the session's record: it settles its pending step, and watches the cohorts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codream_secure.sites.cohorts import CohortRules, asked_about
from codream_secure.sites.history import asked
from codream_secure.sites.party import batch_of
from codream_secure.sites.pending import Follower
from codream_secure.sites.policy import SitePolicy
from codream_secure.sites.session import Session, SiteSettings
from codream_secure.sites.stored_client import StoredClient
from codream_secure.sites.wire import Ask, Batch, Listed
from codream_secure.storage.state_folder import StateFolder
from protocols import messages
from protocols.messages import StepRequest, SurvivorSet


@dataclass(frozen=True, slots=True)
class Following:
    """What a site does with the record and with announced cohorts.

    Args:
        settings: of the site.
        policy: its own.
        folder: its own.
        session: as the site has it.
    """

    settings: SiteSettings
    policy: SitePolicy
    folder: StateFolder
    session: Session

    @property
    def follower(self) -> Follower:
        """Checks entries of the record."""
        batch = batch_of(self.session, Batch(0, 1))
        return Follower(self.folder, batch, self.settings.client)

    @property
    def _cohorts(self) -> CohortRules:
        return CohortRules(self.folder, self.policy, self.session.terms)

    def follow(
        self,
        missed: Sequence[Listed],
        step: int | None,
        public: bytes,
        remember: Callable[[Session], None],
    ) -> bytes:
        """Take in what the site has missed of the record, and settle its pending step.

        Args:
            missed: entries of the record.
            step: that is asked; None: the site is to learn something.
            public: what is asked, bound to the whole record.
            remember: stores the session.

        Returns:
            The request in ``public``.
        """
        found = self.follower.follow(self.session, missed, step)
        request = b"" if step is None else asked(found.session.history, public)
        new = [one for one in found.finished.values() if one.step > self.session.last]
        self._cohorts.follow(new)
        self.follower.settle(found, step, remember)
        return request

    def admit(self, message: Ask, request: object = None) -> None:
        """Check the active set of a step against the cohorts of earlier ones."""
        batch = batch_of(self.session, message.batch)
        active = messages.decode(message.request, StepRequest, batch).active
        messages.decode_set(active, batch.roster)
        self._cohorts.admit(message.step, active, asked_about(request))

    def confirm(self, client: StoredClient, survivors: bytes) -> None:
        """Check a survivor set before it is signed."""
        shown = messages.decode(survivors, SurvivorSet, client.batch).survivors
        if client.running is not None:
            messages.decode_set(shown, client.batch.roster)
            self._cohorts.confirm(shown)
