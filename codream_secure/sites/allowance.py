"""What a site lets servers spend of its examples' privacy: its own limit, over all runs."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.storage.state_folder import StateFolder

RECORD = "allowance"


class _Spent(msgspec.Struct, frozen=True, array_like=True):
    """One session that was begun, with all that it may release."""

    run: bytes  # digest of the session and its options
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
        adjacency are those of `--dp-eps`: one example, added or removed. Sums with everybody's
        noise (class means) rest on others' noise too: a site takes part in them only where its
        roster says who the others are, and the run reckons with as many liars as its threshold
        bears. A folder that is set back to an older state forgets what was spent.
    """

    epsilon: float
    delta: float = 1e-5

    def take(
        self,
        folder: StateFolder,
        session: bytes,
        options: Mapping[str, object],
        *,
        colluders: int | None,
    ) -> None:
        """Put a session on record that is about to begin, or to begin anew.

        Called whenever the state of a session is erased for another: a session that comes back
        after another one costs its epsilon again. One that was cut off while it began does not.

        Args:
            folder: the site's.
            session: of the run.
            options: of the run, as `Config.options`.
            colluders: of whom the roster's threshold bears; None: there is no roster.

        Raises:
            RequestRefused: the run has no DP, noise that its server can take off, or more epsilon
                or delta than is left.
        """
        epsilon, delta = _limits(options)
        _check_shared_noise(options, colluders)
        told = msgspec.msgpack.encode((session, options), order="deterministic")
        run = hashlib.sha256(told).digest()
        spent = _load(folder)
        if spent and spent[-1].run == run:
            return
        spent.append(_Spent(run, epsilon, delta))
        for name, limit, total in (
            ("epsilon", self.epsilon, sum(one.epsilon for one in spent)),
            ("delta", self.delta, sum(one.delta for one in spent)),
        ):
            if not total <= limit:
                raise RequestRefused(
                    f"with this run the site would have spent {name} {total:g}, and {limit:g} is "
                    "what it allows"
                )
        folder.save(RECORD, msgspec.msgpack.encode(spent))


def _limits(options: Mapping[str, object]) -> tuple[float, float]:
    epsilon, delta = options.get("dp_eps"), options.get("dp_delta")
    if epsilon is None:
        raise RequestRefused("this site takes part under differential privacy only: --dp-eps")
    if not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
        raise RequestRefused(f"an epsilon of {epsilon}")
    if not isinstance(delta, int | float) or not 0 < delta < 1:
        raise RequestRefused(f"a delta of {delta}")
    if options.get("dp_unit") != "example":
        raise RequestRefused("this site's limit is about one example: --dp-unit example")
    if options.get("seed") is not None:
        raise RequestRefused("with a seed the server knows this site's noise: leave it out")
    return float(epsilon), float(delta)


def _check_shared_noise(options: Mapping[str, object], colluders: int | None) -> None:
    if options.get("statistics_eps") == 0:
        return
    if colluders is None:
        raise RequestRefused(
            "class means rest on others' noise, and without a roster this site cannot know that "
            "there are others: statistics-eps 0, or the malicious model"
        )
    chosen = options.get("noise_colluders")
    if chosen is not None and not (isinstance(chosen, int) and chosen >= colluders):
        raise RequestRefused(f"noise for {chosen} colluders, and {colluders} must be reckoned with")


def _load(folder: StateFolder) -> list[_Spent]:
    kept = folder.load(RECORD)
    return [] if kept is None else msgspec.msgpack.decode(kept, type=list[_Spent])
