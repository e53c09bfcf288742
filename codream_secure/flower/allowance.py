"""What a site lets servers spend of its examples' privacy: its own limit, over all runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.state_folder import StateFolder

RECORD = "allowance"


class _Spent(msgspec.Struct, frozen=True, array_like=True):
    """One session that was begun, with all that it may release."""

    session: bytes
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """A limit that lies with the site, since a run's epsilon is chosen by its server.

    Args:
        epsilon: what all sessions from one folder may have together.
        delta: the same for delta.

    Guarantee:
        A session is on record, with the whole epsilon and delta of its settings, before anything
        is trained for it; epsilons and deltas add up (Dwork and Roth 2014, theorem 3.16). Unit and
        adjacency are those of `--dp-eps`: one example, added or removed. A folder that is set back
        to an older state forgets what was spent.
    """

    epsilon: float
    delta: float = 1e-5

    def take(self, folder: StateFolder, session: bytes, options: Mapping[str, object]) -> None:
        """Put a session on record, or find that it is.

        Args:
            folder: the site's.
            session: of the run.
            options: of the run, as `Config.options`.

        Raises:
            RequestRefused: the run has no DP, noise that its server can take off, or more epsilon
                or delta than is left.
        """
        epsilon, delta = options.get("dp_eps"), options.get("dp_delta")
        if not isinstance(epsilon, int | float) or not isinstance(delta, int | float):
            raise RequestRefused("this site takes part under differential privacy only: --dp-eps")
        if options.get("seed") is not None:
            raise RequestRefused("with a seed the server knows this site's noise: leave it out")
        spent = _load(folder)
        if any(one.session == session for one in spent):
            return
        spent.append(_Spent(session, epsilon, delta))
        for name, limit, total in (
            ("epsilon", self.epsilon, sum(one.epsilon for one in spent)),
            ("delta", self.delta, sum(one.delta for one in spent)),
        ):
            if total > limit:
                raise RequestRefused(
                    f"with this run the site would have spent {name} {total:g}, and {limit:g} is "
                    "what it allows"
                )
        folder.save(RECORD, msgspec.msgpack.encode(spent))


def _load(folder: StateFolder) -> list[_Spent]:
    kept = folder.load(RECORD)
    return [] if kept is None else msgspec.msgpack.decode(kept, type=list[_Spent])
