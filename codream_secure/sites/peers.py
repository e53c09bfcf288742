"""The sites as the server sees them: numbers to which it sends bytes, and what they answered."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from codream_secure.sites.wire import NO_SESSION, Answer, Message, decode_answer, encode

# After so many missing answers in a row the server still asks a site, but repeats no key exchange
# for it.
_PATIENCE = 3
# Characters of a site's refusal that reach the log.
_LONGEST = 500

# Takes encoded messages by site; returns the encoded answers that arrived in time, by site.
Carry = Callable[[Mapping[int, bytes]], Mapping[int, bytes]]
Tell = Callable[[str], None]


def one_line(text: str) -> str:
    """Make another party's text safe for a log: one short line of printable characters.

    Otherwise a site could forge log lines or send control codes to a terminal.
    """
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST])


@dataclass(slots=True)
class Traffic:
    """Bytes sent and received, and how often and how long the server waited.

    ``down`` and ``up`` count message bodies, ``whole_down`` and ``whole_up`` whole messages as the
    carrier sends them (0 if it does not count).
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
    """The sites of a session, as the server sees them.

    Args:
        carry: sends bytes to sites and returns their answers.
        roster: numbers of the sites.
        tell: called with one line for each thing that went wrong.

    Attributes:
        traffic: counts what was sent and received.
        refused: by site, the reason of its last refusal, in one line.
        present: sites that have joined the session.
        unfit: sites that cannot take part; they are asked nothing more.
        silent: by site, how many messages in a row it left unanswered or refused.
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
        """Return whether a site is likely to answer if it is asked again."""
        return site not in self.unfit and self.silent.get(site, 0) < _PATIENCE

    def admit(self, site: int, reason: str, *, proven: bool) -> bool:
        """Let a site that has answered the greeting into the session; return whether it is in.

        Args:
            site: its number.
            reason: why it cannot take part; empty if it can.
            proven: whether the answer is the site's own. If not, it is as good as none: it must
                not keep the site itself out.
        """
        if not proven:
            self.tell(f"site {site}: the answer has no proof of the site's key in the roster")
        elif reason:
            self.tell(f"site {site} cannot take part: {reason}")
            self.unfit.add(site)
        else:
            self.present.add(site)
        return proven and not reason

    def ask(self, messages: Mapping[int, Message]) -> dict[int, Answer]:
        """Send messages, wait, and return the answers by site.

        Sites that refuse or do not answer are left out. But a site that refuses its step and
        answers the key exchange in the same message is not left out.
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
            if answer.key_exchange or not answer.refused:
                found[site] = answer
        for site in sorted(set(encoded) - set(replies)):
            self.tell(f"site {site} did not answer")
        for site in encoded:
            self.silent[site] = 0 if site in found else self.silent.get(site, 0) + 1
        return found
