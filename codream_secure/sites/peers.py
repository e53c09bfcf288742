"""The sites of a run as the server sees them: numbers that bytes are sent to."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from codream_secure.sites.wire import NO_SESSION, Answer, Message, decode_answer, encode

# A site that gave no answer so often in a row is asked, but nothing is put off for its sake.
_PATIENCE = 3
# Of what a site says of its refusal, characters that are kept.
_LONGEST = 500

# Takes encoded messages by site, returns the encoded answers of those that answered in time.
Carry = Callable[[Mapping[int, bytes]], Mapping[int, bytes]]
Tell = Callable[[str], None]


def one_line(text: str) -> str:
    """Return what another party says as it may stand in a log: short, on one line, printable."""
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST])


@dataclass(slots=True)
class Traffic:
    """What really moved, and how often the server waited.

    ``down`` and ``up`` are bytes of message bodies, ``whole_down`` and ``whole_up`` of the messages
    with all that the carrier puts around them, if it tells.
    """

    down: int = 0
    up: int = 0
    whole_down: int = 0
    whole_up: int = 0
    messages: int = 0
    round_trips: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Sites:
    """The sites of a run, as the server sees them.

    Args:
        carry: moves bytes.
        roster: numbers of the sites.
        tell: told what went wrong, a line each.

    Attributes:
        traffic: what moved so far.
        refused: by site, the last reason that it gave, cut to one line.
        present: sites that take part in the session.
        unfit: sites that cannot take part, and are asked nothing more.
        silent: by site, how many messages in a row it has not answered, or refused.
    """

    carry: Carry
    roster: tuple[int, ...]
    tell: Tell
    traffic: Traffic = field(default_factory=Traffic)
    refused: dict[int, str] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    unfit: set[int] = field(default_factory=set)
    silent: dict[int, int] = field(default_factory=dict)

    def awaited(self, site: int) -> bool:
        """Tell whether a site can be expected to answer if it is asked again."""
        return site not in self.unfit and self.silent.get(site, 0) < _PATIENCE

    def ask(self, messages: Mapping[int, Message]) -> dict[int, Answer]:
        """Send messages and wait; sites that refuse, or are not heard of, have no answer.

        Who refuses what it was asked may have answered what was asked beside it.
        """
        encoded = {s: encode(m) for s, m in messages.items() if s not in self.unfit}
        if not encoded:
            return {}
        began = time.monotonic()
        replies = self.carry(encoded)
        traffic = self.traffic
        traffic.seconds += time.monotonic() - began
        traffic.round_trips += 1
        traffic.messages += len(encoded)
        traffic.down += sum(map(len, encoded.values()))
        traffic.up += sum(map(len, replies.values()))
        found = {}
        for site, data in sorted(replies.items()):
            try:
                answer = decode_answer(data)
            except msgspec.DecodeError as error:
                answer = Answer(refused=f"not an answer: {error}")
            if answer.refused:
                reason = self.refused[site] = one_line(answer.refused)
                self.tell(f"site {site} refused: {reason}")
                if reason.endswith(NO_SESSION):
                    self.present.discard(site)  # it is greeted again
            if answer.beside or not answer.refused:
                found[site] = answer
        for site in sorted(set(encoded) - set(replies)):
            self.tell(f"site {site} did not answer")
        for site in encoded:
            self.silent[site] = 0 if site in found else self.silent.get(site, 0) + 1
        return found
