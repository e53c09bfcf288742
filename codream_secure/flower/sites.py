"""The sites of a run as the server sees them: numbers that bytes are sent to."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from codream_secure.flower.wire import NO_SESSION, Answer, Message, decode_answer, encode

# Takes encoded messages by site, returns the encoded answers of those that answered in time.
Carry = Callable[[Mapping[int, bytes]], Mapping[int, bytes]]
Tell = Callable[[str], None]


@dataclass(slots=True)
class Traffic:
    """What really moved, in bytes of message bodies, and how often the server waited."""

    down: int = 0
    up: int = 0
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
        refused: by site, the last reason that it gave.
        present: sites that take part in the session.
        unfit: sites that cannot take part, and are asked nothing more.
    """

    carry: Carry
    roster: tuple[int, ...]
    tell: Tell
    traffic: Traffic = field(default_factory=Traffic)
    refused: dict[int, str] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    unfit: set[int] = field(default_factory=set)

    def ask(self, messages: Mapping[int, Message]) -> dict[int, Answer]:
        """Send messages and wait; sites that refuse, or are not heard of, have no answer."""
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
                self.refused[site] = answer.refused
                self.tell(f"site {site} refused: {answer.refused}")
                if answer.refused.endswith(NO_SESSION):
                    self.present.discard(site)  # it is greeted again
            else:
                found[site] = answer
        for site in sorted(set(encoded) - set(replies)):
            self.tell(f"site {site} did not answer")
        return found
