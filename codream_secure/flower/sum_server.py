"""The server of sums over sites that take part in nothing else."""

import hashlib
import os
from collections.abc import Callable

import msgspec

from codream_secure.flower.remote_sums import RemoteSums, SumTerms
from codream_secure.flower.sites import Carry, Sites, Tell
from codream_secure.flower.wire import VERSION, Begin, Joined, decode_joined
from protocols.errors import NotEnoughSurvivors
from protocols.params import Phase, Section, Task, ThreatModel, default_threshold
from protocols.server import Finished


class SumServer:
    """A session of sums.

    Args:
        carry: moves bytes.
        clients: sites, numbered from 0.
        threshold: t, sites that must answer every round; None: the default.
        threat_model: whom the sites take the server for.
        identities: public keys in roster order, in the malicious model.
        rejoin: malicious model: whether a site that missed a step may be back in the next one.
        key_steps: for how many steps keys are made in one exchange.
        tell: told what went wrong, a line each.

    Attributes:
        sites: who is asked, and what moved.
        terms: of the session.
        step: number of the next step.

    Raises:
        ConfigError: the terms are not those of any session.
    """

    def __init__(
        self,
        carry: Carry,
        *,
        clients: int,
        threshold: int | None = None,
        threat_model: ThreatModel = "semi-honest",
        identities: tuple[bytes, ...] = (),
        rejoin: bool = False,
        key_steps: int = 16,
        tell: Tell = lambda _: None,
    ) -> None:
        self.terms = SumTerms(
            session=os.urandom(32),
            roster=tuple(range(clients)),
            threshold=default_threshold(clients) if threshold is None else threshold,
            threat_model=threat_model,
            identities=identities,
            rejoin=rejoin,
        )
        self.sites = Sites(carry, self.terms.roster, tell)
        self.step = 0
        self._tell, self._key_steps = tell, key_steps
        self._sums = RemoteSums(self.sites, self.terms, lambda *_: None)

    def greet(self) -> None:
        """Begin the session at every site that is not in it."""
        terms = self.terms
        begin = Begin(
            version=VERSION,
            session=terms.session,
            clients=len(terms.roster),
            threshold=terms.threshold,
            threat_model=terms.threat_model,
            key_steps=self._key_steps,
            rejoin=terms.rejoin,
            identities=terms.identities,
        )
        missing = [site for site in terms.roster if site not in self.sites.present]
        for site, answer in self.sites.ask(dict.fromkeys(missing, begin)).items():
            if reason := self._unfit(site, answer.data):
                self._tell(f"site {site} cannot take part: {reason}")
                self.sites.unfit.add(site)
            else:
                self.sites.present.add(site)

    def _unfit(self, site: int, data: bytes) -> str:
        try:
            found: Joined = decode_joined(data)
        except msgspec.DecodeError as error:
            return f"it sent what cannot be used: {error}"
        if found.version != VERSION:
            return f"it speaks version {found.version}, not {VERSION}"
        if found.client != site:
            return f"it says that it is site {found.client}"
        if self.terms.malicious and found.identity != self.terms.identities[site]:
            return "its signing key is not the one in the roster"
        return ""

    def sum(
        self, kind: str, sections: tuple[Section, ...], broadcast: Callable[[int], bytes]
    ) -> Finished:
        """Take the next step.

        Args:
            kind: what is summed.
            sections: of every site's input.
            broadcast: makes the public bytes that sites are sent, from the step's number.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        """
        step, self.step = self.step, self.step + 1
        self.greet()
        present, needed = len(self.sites.present), self.terms.threshold
        if present < needed:
            raise NotEnoughSurvivors(Phase.ADVERTISE_KEYS, present, needed)
        public = broadcast(step)
        task = Task(
            step=step,
            kind=kind,
            sections=sections,
            broadcast_digest=hashlib.sha256(public).digest(),
        )
        return self._sums.sum(task, public, self._key_steps)
