"""Secure aggregation of integer vectors over prime fields (Bonawitz et al., CCS 2017).

Sans-IO: no sockets, no files, no clock, no ambient randomness. `protocols/SPEC.md` is normative.
`secure_sum` tries the protocol in one call; `driver.run_aggregation`, which it calls, is the place
to start reading.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protocols.sums import secure_mean, secure_sum

__all__ = ["secure_mean", "secure_sum"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module has
    """Load a public name when it is first used: a client's side needs nothing of the server's."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from protocols import sums  # noqa: PLC0415 - see above

    return getattr(sums, name)
