"""What sites learn from, sent in the order of the record until every site has all of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from codream_secure.sites.history import SIZE
from codream_secure.sites.peers import Sites
from codream_secure.sites.record import Record
from codream_secure.sites.wire import DONE, NEEDS, Answer, Learn, Lesson


@dataclass(frozen=True, slots=True)
class Lessons:
    """The lessons of a session, for sites that may be away.

    Args:
        record: of the session.
        sites: the sites.
        request: returns a request by its name in the record; None: it is not kept.
    """

    record: Record
    sites: Sites
    request: Callable[[bytes], bytes | None]

    def tell(self, lesson: Lesson) -> int:
        """Send what sites learn from, and bind all later steps to it (`sites.history`).

        Returns:
            How many sites have received every lesson so far.
        """
        self.record.add(lesson)
        return self.catch_up()

    def catch_up(self) -> int:
        """Send each site the lessons that it missed, in order; return how many have them all."""
        present = self.sites.present
        waiting = self._next(sorted(present))
        while waiting:
            answers = self.sites.ask(waiting)
            answers |= self.sites.ask(self._again(waiting, answers))
            learned = [site for site, answer in answers.items() if answer.data == DONE]
            for site in learned:
                self.record.passed(site, len(waiting[site].missed), 1)
            waiting = self._next(learned)
        return sum(self.record.lesson(site) is None for site in present)

    def _next(self, sites: Sequence[int]) -> dict[int, Lesson]:
        """Return the next lesson of each site that has missed one, with what else it missed."""
        found = {site: self.record.lesson(site) for site in sites}
        return {
            site: msgspec.structs.replace(lesson, missed=self.record.missed(site))
            for site, lesson in found.items()
            if lesson is not None
        }

    def _again(
        self, told: Mapping[int, Lesson], answers: Mapping[int, Answer]
    ) -> dict[int, Lesson]:
        """Return the lessons to repeat, with the requests that sites say they lack."""
        again: dict[int, Lesson] = {}
        for site, answer in answers.items():
            lesson = told[site]
            if isinstance(lesson, Learn) and answer.data.startswith(NEEDS):
                names = answer.data.removeprefix(NEEDS)
                each = (names[at : at + SIZE] for at in range(0, len(names), SIZE))
                kept = (self.request(name) for name in each)
                requests = tuple(request for request in kept if request is not None)
                again[site] = msgspec.structs.replace(lesson, requests=requests)
        return again
