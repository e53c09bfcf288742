"""The public record of a session, as its server keeps it: what sites are bound to, in order.

`history` has its digest, and `pending` what a site does with it (SPEC 6.11).
"""

from dataclasses import dataclass, field
from itertools import takewhile

from codream_secure.sites.history import after, name_of
from codream_secure.sites.wire import Entry, Lesson, Listed, Proof
from protocols.messages import encode_set
from protocols.params import Terms
from protocols.server.step import Finished


@dataclass(slots=True)
class Record:
    """Steps and lessons of a session, and how far every site has them.

    Attributes:
        digest: running digest of the items, 32 bytes.
        items: steps as `Listed`, and what sites learned from.
        received: by site, how many items it has processed.
    """

    digest: bytes
    items: list[Listed | Lesson] = field(default_factory=list)
    received: dict[int, int] = field(default_factory=dict)

    def add(self, item: Listed | Lesson) -> None:
        """Append a step or a lesson."""
        self.digest = after(self.digest, item.entry if isinstance(item, Listed) else item)
        self.items.append(item)

    @property
    def last_step(self) -> Listed:
        """The last item, right after a step was added."""
        item = self.items[-1]
        if not isinstance(item, Listed):
            raise TypeError("the last item is no step")
        return item

    def missed(self, site: int) -> tuple[Listed, ...]:
        """Return the steps that a site has missed, up to the next lesson."""
        new = self.items[self.received.get(site, 0) :]
        listed = takewhile(lambda item: isinstance(item, Listed), new)
        return tuple(item for item in listed if isinstance(item, Listed))

    def lesson(self, site: int) -> Lesson | None:
        """Return the next lesson that a site has missed; None: it has them all."""
        new = self.items[self.received.get(site, 0) :]
        return next((item for item in new if not isinstance(item, Listed)), None)

    def joined(self, site: int, received: int) -> None:
        """Note how many items a site says that it has; what it has already it skips."""
        self.received[site] = max(0, min(received, len(self.items)))

    def passed(self, site: int, steps: int, lessons: int = 0) -> None:
        """Note that a site has processed so many items more."""
        self.received[site] = self.received.get(site, 0) + steps + lessons


def aborted(step: int, request: bytes) -> Listed:
    """Return the record's item of a step that gave no sum."""
    return Listed(Entry(step, name_of(request)))


def summed(step: int, request: bytes, terms: Terms, found: Finished) -> Listed:
    """Return the record's item of a step that gave a sum."""
    proof = None if found.proof is None else Proof(found.proof.signers, found.proof.signatures)
    survivors = encode_set(found.survivors, terms.roster)
    return Listed(Entry(step, name_of(request), found.on, found.key, survivors), proof)
