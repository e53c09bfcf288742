"""A site's input to a sum: public facts alone can refuse it; else there always is one."""

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from codream_secure.sites import site_log
from codream_secure.storage.state_folder import StateFolder
from protocols.client.step import Inputs
from protocols.params import Task

_log = logging.getLogger(__name__)


class Contribution(NamedTuple):
    """A site's input to a sum, and what had to be repaired; only the input leaves the site.

    Attributes:
        inputs: by section.
        repaired: how many numbers were not finite, or missing.
        faults: errors of the computation, a line each. They may quote private data.
        state: what answering changes, pending until the step is known to be finished; empty:
            nothing (see `sites.pending`).
    """

    inputs: Inputs
    repaired: int = 0
    faults: tuple[str, ...] = ()
    state: bytes = b""


Compute = Callable[[], Contribution]


class Summand(Protocol):
    """The part of a site that gives its inputs to sums."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of sums that the site takes part in."""

    def task(self, broadcast: bytes, step: int, folder: StateFolder) -> Task:
        """Return what is summed. It is cheap, since a repeated request calls it again.

        Raises:
            RequestRefused: the broadcast is for another step, or asks for what the site refuses.
                Nothing here may depend on private data.
        """

    def content(self, broadcast: bytes) -> bytes:
        """Return what is asked without its counters, which is answered in one session alone.

        Empty: it may be asked in every session.
        """

    def contribute(self, broadcast: bytes, folder: StateFolder) -> Contribution:
        """Return the site's input. It is called once for each broadcast, and raises nothing.

        What cannot be computed is zero: a refusal would tell the server something.
        """


def noted_inputs(folder: StateFolder, kind: str, found: Contribution) -> Inputs:
    """Return the input, and tell the operator alone what was repaired in it."""
    for fault in found.faults:
        _log.error("the site's part of a sum is zero: %s", fault)
    if found.repaired:
        _log.warning("%d numbers of an answer count as 0 or as the clip", found.repaired)
    repaired = bool(found.faults or found.repaired)
    site_log.record(folder, kind=kind, answered=1, repaired=int(repaired))
    return found.inputs


def whatever_happens(train: Callable[[], object]) -> None:
    """Train, and tell the site's operator alone if that fails: the server must not notice."""
    try:
        train()
    except Exception:  # noqa: BLE001 - whatever it is, it must not show
        _log.exception("training stopped; the model stays as it is by now")
