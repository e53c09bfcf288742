"""What a noisy sum is still worth, before anybody runs it: signal against noise, and bits.

n contributions, each clipped to norm c, point in a common direction with a share kappa of their
norm: 1 if all agree, 1 / sqrt(n) if they have nothing in common. Their sum has norm kappa n c; the
noise has standard deviation z c in each of d coordinates. With T releases of one direction z
grows by sqrt(T) and so does what averaging regains: the ratio of all together does not depend on T.
"""

import math
from dataclasses import dataclass

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import Unit, noise_multiplier_for
from protocols.params import default_threshold

# Steps of the grid for the clip over sqrt(dimension): rounding adds half a percent of sensitivity.
_GRID = 5.0
# Magnitudes that a table of integer noise holds, in its standard deviations.
_REACH = 14.0
MOST_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A prediction.

    Attributes:
        unit: who is protected.
        contributions: n, what is summed: clients, or examples of all clients.
        noise_multiplier: of one of the releases, over the clip.
        ratio: signal to noise of all releases together.
        ratio_each: of one release.
        cosine: between the noisy sum of all releases and the true direction.
        needed: contributions for a ratio of 1.
        bits: of one coordinate of a masked input; above 32 the protocol cannot carry it.
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
) -> Outlook:
    """Return what sums of clipped vectors with distributed noise are worth.

    Args:
        unit: of privacy.
        contributions: clients, or examples of all clients.
        clients: who share the noise; sized so that the default threshold less one suffices.
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
    # What everybody sends lies within its clip and its share of noise.
    grid = _GRID * math.sqrt(dimensions)
    share = each * grid / math.sqrt(default_threshold(clients) - 1)
    reach = grid * (contributions / clients if unit == "example" else 1) + _REACH * share
    return Outlook(
        unit=unit,
        contributions=contributions,
        noise_multiplier=each,
        ratio=ratio,
        ratio_each=ratio / math.sqrt(releases),
        cosine=ratio / math.sqrt(1 + ratio**2),
        needed=math.ceil(one * math.sqrt(dimensions) / agreement),
        bits=math.ceil(math.log2(2 * reach * clients + 1)),
    )
