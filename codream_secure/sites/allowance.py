"""A site's own limit on the privacy that all runs together may spend of its data."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.storage.state_folder import StateFolder

RECORD = "allowance"


class Costs(NamedTuple):
    """What a run may cost a site.

    Attributes:
        example: epsilon of one example of the site.
        client: epsilon of the site as a whole; infinite if the run protects examples alone.
        delta: of both.
    """

    example: float
    client: float
    delta: float


class _Spent(msgspec.Struct, frozen=True, array_like=True):
    """A session that has begun, with the whole epsilon and delta of its settings."""

    run: bytes  # digest of the session and its options
    epsilon: float  # of one example
    delta: float
    client: float | None = None  # epsilon of the site as a whole; None: infinite


@dataclass(frozen=True, slots=True)
class Allowance:
    """The site's own limit: a run's server chooses epsilon, so the site must be able to refuse it.

    Args:
        epsilon: the most that all sessions of one folder may spend together; None: no limit, but
            what is spent is on record for a limit that comes later.
        delta: the same for delta.
        unit: whom the limit protects: one example of the site, added or removed, or the site as a
            whole, in whose place is one that contributes zeros.

    Guarantee:
        A session is on record, with the whole epsilon and delta of its settings, before anything
        is trained for it; epsilons and deltas add up (Dwork and Roth 2014, theorem 3.16). There
        is one record for all units: what was spent for the site as the unit counts in full for
        its examples (`Costs`), and what was spent for an example says nothing about the site.
        Sums that need the noise of all sites (class means, labels with the site as the unit) rest
        on the others' noise too. So a site takes part in them only if it has a roster, which says
        who the others are, and if the run assumes at least as many colluders as the roster's
        threshold tolerates. A folder that is restored to an older state forgets what was spent
        since.
    """

    epsilon: float | None
    delta: float = 1e-5
    unit: Literal["example", "client"] = "example"

    def charge(
        self,
        folder: StateFolder,
        session: bytes,
        options: Mapping[str, object],
        costs: Costs | None,
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
            costs: of the whole run; None: it has no DP.
            colluders: n_C, the most colluders that the roster's threshold tolerates; None: there is
                no roster.

        Raises:
            RequestRefused: the run has no DP, does not protect whom the limit protects, has noise
                that its server can remove, or needs more epsilon or delta than is left.
        """
        if self.epsilon is not None:
            self._check_kind(options, costs)
        if costs is None:
            return
        if not 0 < costs.example < math.inf:
            raise RequestRefused(f"an epsilon of {costs.example}")
        if not 0 < costs.delta < 1:
            raise RequestRefused(f"a delta of {costs.delta}")
        by_site = options.get("dp_unit") == "client"
        if by_site or (self.epsilon is not None and options.get("statistics_eps") != 0):
            _check_shared_noise(options, colluders)
        encoded = msgspec.msgpack.encode((session, options), order="deterministic")
        run = hashlib.sha256(encoded).digest()
        spent = _load(folder)
        if spent and spent[-1].run == run:
            return
        of_site = costs.client if math.isfinite(costs.client) else None
        spent.append(_Spent(run, costs.example, costs.delta, of_site))
        if self.epsilon is not None:
            self._check_total(spent, self.epsilon)
        folder.save(RECORD, msgspec.msgpack.encode(spent))

    def _check_kind(self, options: Mapping[str, object], costs: Costs | None) -> None:
        """Refuse a run whose DP would not hold at this site."""
        if costs is None:
            raise RequestRefused("this site takes part under differential privacy only: --dp-eps")
        if self.unit == "client" and options.get("dp_unit") != "client":
            raise RequestRefused("this site's limit is about the whole site: --dp-unit client")
        if options.get("seed") is not None:
            raise RequestRefused("with a seed the server knows this site's noise: leave it out")

    def _check_total(self, spent: list[_Spent], limit: float) -> None:
        of_site = self.unit == "client"
        if of_site and any(one.client is None for one in spent):
            raise RequestRefused(
                "this site has spent epsilon for examples alone, which bounds nothing about the "
                "site as a whole: with unit = client it needs a new folder"
            )
        epsilons = [one.client or 0.0 if of_site else one.epsilon for one in spent]
        for name, most, total in (
            ("epsilon", limit, sum(epsilons)),
            ("delta", self.delta, sum(one.delta for one in spent)),
        ):
            if not total <= most:  # written so that NaN is refused
                raise RequestRefused(
                    f"with this run the site would have spent {name} {total:g}, and it allows "
                    f"{most:g}"
                )


def _check_shared_noise(options: Mapping[str, object], colluders: int | None) -> None:
    """Refuse sums with shared noise if fewer honest sites than assumed may add noise to them."""
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
