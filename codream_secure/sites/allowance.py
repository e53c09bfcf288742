"""A site's own limit on the privacy that all runs together may spend of its examples."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.storage.state_folder import StateFolder

RECORD = "allowance"


class _Spent(msgspec.Struct, frozen=True, array_like=True):
    """A session that has begun, with the whole epsilon and delta of its settings."""

    run: bytes  # digest of the session and its options
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """The site's own limit: a run's server chooses epsilon, so the site must be able to refuse it.

    Args:
        epsilon: the most that all sessions of one folder may spend together.
        delta: the same for delta.

    Guarantee:
        A session is on record, with the whole epsilon and delta of its settings, before anything
        is trained for it; epsilons and deltas add up (Dwork and Roth 2014, theorem 3.16). Unit and
        adjacency are those of `--dp-eps`: one example, added or removed. Sums that need the noise
        of all sites (class means) rest on the others' noise too. So a site takes part in them only
        if it has a roster, which says who the others are, and if the run assumes at least as many
        colluders as the roster's threshold tolerates. A folder that is restored to an older state
        forgets what was spent since.
    """

    epsilon: float
    delta: float = 1e-5

    def charge(
        self,
        folder: StateFolder,
        session: bytes,
        options: Mapping[str, object],
        *,
        colluders: int | None,
    ) -> None:
        """Charge a session that is about to begin, or to begin again.

        A session is charged again if another one began since, because its training starts anew.
        The last session is not charged twice: it was cut off while it began.

        Args:
            folder: the site's.
            session: of the run, 32 bytes.
            options: of the run, as `Config.options`.
            colluders: n_C, the most colluders that the roster's threshold tolerates; None: there is
                no roster.

        Raises:
            RequestRefused: the run has no DP, has noise that its server can remove, or needs more
                epsilon or delta than is left.
        """
        epsilon, delta = _limits(options)
        _check_shared_noise(options, colluders)
        encoded = msgspec.msgpack.encode((session, options), order="deterministic")
        run = hashlib.sha256(encoded).digest()
        spent = _load(folder)
        if spent and spent[-1].run == run:
            return
        spent.append(_Spent(run, epsilon, delta))
        for name, limit, total in (
            ("epsilon", self.epsilon, sum(one.epsilon for one in spent)),
            ("delta", self.delta, sum(one.delta for one in spent)),
        ):
            if not total <= limit:  # written so that NaN is refused
                raise RequestRefused(
                    f"with this run the site would have spent {name} {total:g}, and it allows "
                    f"{limit:g}"
                )
        folder.save(RECORD, msgspec.msgpack.encode(spent))


def _limits(options: Mapping[str, object]) -> tuple[float, float]:
    """Return epsilon and delta of a run; refuse a run whose DP would not hold at this site."""
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
    """Refuse class means if fewer honest sites than assumed may add noise to them."""
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
    return folder.load_as(RECORD, list[_Spent]) or []
