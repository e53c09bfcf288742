"""Forecast of what a noisy sum is worth before anybody runs it: signal to noise, and bits.

There are n contributions, each clipped to norm c. Of each norm the share kappa points in a common
direction: kappa is 1 if all agree and 1 / sqrt(n) if they have nothing in common. The sum has norm
kappa n c, and the noise has standard deviation z c in each of d coordinates. With T releases of
one direction z grows by sqrt(T), and averaging T releases gains sqrt(T): so the ratio of all
releases together does not depend on T.
"""

import math
from dataclasses import dataclass

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import Unit
from codream_secure.privacy.noise_search import noise_multiplier_for
from protocols.params import default_threshold

# The clip is _GRID * sqrt(dimension) integers long: rounding adds half a percent to the
# sensitivity.
_GRID = 5.0
# The largest draw in a table of integer noise, in standard deviations.
_REACH = 14.0
MOST_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The forecast for noisy sums.

    Attributes:
        unit: who is protected.
        contributions: n, how many vectors are summed: of clients, or of examples of all clients.
        noise_multiplier: standard deviation of the noise of one release, divided by the clip.
        ratio: signal to noise of all releases together.
        ratio_each: signal to noise of one release.
        cosine: between the noisy sum of all releases and the true direction.
        needed: contributions that give a ratio of 1.
        bits: bits of one coordinate of a masked input; the protocol carries at most 32.
    """

    unit: Unit
    contributions: int
    noise_multiplier: float
    ratio: float
    ratio_each: float
    cosine: float
    needed: int
    bits: int


def predict(
    unit: Unit,
    *,
    contributions: int,
    clients: int,
    dimensions: int,
    releases: int,
    epsilon: float,
    delta: float,
    agreement: float = 1.0,
) -> Forecast:
    """Return the forecast for sums of clipped vectors with distributed noise.

    Args:
        unit: of privacy.
        contributions: clients, or examples of all clients.
        clients: how many add noise. Each share is sized so that the default threshold less one
            shares are enough.
        dimensions: d of one release.
        releases: T.
        epsilon: of all releases.
        delta: in (0, 1).
        agreement: kappa in (0, 1].

    Raises:
        UserError: an argument is out of range.
    """
    if min(contributions, dimensions, releases) < 1 or clients < 3:  # noqa: PLR2004 - for masks
        raise UserError(
            "contributions, dimensions and releases must be at least 1, clients at least 3"
        )
    if not 0 < agreement <= 1:
        raise UserError(f"the agreement must be above 0 and at most 1, not {agreement}")
    one = noise_multiplier_for(epsilon, delta, 1.0, 1)
    ratio = agreement * contributions / (one * math.sqrt(dimensions))
    each = one * math.sqrt(releases)
    # A client's coordinates are bounded by its clip and its share of noise.
    grid = _GRID * math.sqrt(dimensions)
    share = each * grid / math.sqrt(default_threshold(clients) - 1)
    reach = grid * (contributions / clients if unit == "example" else 1) + _REACH * share
    return Forecast(
        unit=unit,
        contributions=contributions,
        noise_multiplier=each,
        ratio=ratio,
        ratio_each=ratio / math.sqrt(releases),
        cosine=ratio / math.sqrt(1 + ratio**2),
        needed=math.ceil(one * math.sqrt(dimensions) / agreement),
        bits=math.ceil(math.log2(2 * reach * clients + 1)),
    )
