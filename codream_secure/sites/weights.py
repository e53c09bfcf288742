"""What a site has told of its number of examples; it holds over all sessions (D2).

A weight is the same in every sum. Two sums of weights over sets of sites that differ by one tell
that site's weight, so a site takes part in one such sum, whatever session it is in. Under two caps
a site would also tell whether its weight is above the smaller one.
"""

import hashlib
from typing import Final

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.storage.state_folder import StateFolder

# The identity's record, and the session's.
RECORD: Final = "weights"
_TERMS = "weight-terms"


class _Told(msgspec.Struct, frozen=True, array_like=True):
    """The cap under which the weight was told, and the request that asked for it."""

    cap: int
    request: bytes


class _Terms(msgspec.Struct, frozen=True, array_like=True):
    """What the first requests of a session said; a cap of None: nothing was trained yet."""

    key: str
    cap: int | None


def check(folder: StateFolder, key: str, cap: int | None) -> None:
    """Hold a session to the first name and the first cap of the weight.

    Under another name the weight would count as a common metric, and be summed again.

    Args:
        folder: of the site.
        key: the app's name of the number of examples.
        cap: W; 0: all sites count alike; None: the request says nothing of it.

    Raises:
        RequestRefused: the name or the cap is another one than before.
    """
    known = folder.load_as(_TERMS, _Terms) or _Terms(key, None)
    if known.key != key:
        raise RequestRefused("the weight had another name in this session (D2)")
    if None not in {cap, known.cap} and cap != known.cap:
        raise RequestRefused(f"weight_cap {cap}: it was {known.cap} when the session began (D2)")
    told = folder.load_as(RECORD, _Told)
    if cap and told is not None and told.cap != cap:
        raise RequestRefused(f"weight_cap {cap}: the weight was told under {told.cap} (D2){_HOW}")
    agreed = _Terms(key, known.cap if cap is None else cap)
    folder.save(_TERMS, msgspec.msgpack.encode(agreed))


def check_untold(folder: StateFolder, broadcast: bytes) -> None:
    """Refuse to tell the weight a second time; the same request again is the first time.

    Raises:
        RequestRefused: another request was told the weight.
    """
    told = folder.load_as(RECORD, _Told)
    if told is not None and told.request != hashlib.sha256(broadcast).digest():
        raise RequestRefused(f"the weight was told once (D2){_HOW}")


def tell(folder: StateFolder, broadcast: bytes, cap: int) -> None:
    """Note that the weight is told to a request, before it is."""
    told = _Told(cap, hashlib.sha256(broadcast).digest())
    folder.save(RECORD, msgspec.msgpack.encode(told))


_HOW = "; with other data the site's operator may say `deploy forget`"
