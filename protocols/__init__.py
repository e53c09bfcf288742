"""Secure aggregation of integer vectors over prime fields (Bonawitz et al., CCS 2017).

Sans-IO: no sockets, no files, no clock, no ambient randomness. `protocols/SPEC.md` is normative.
`secure_sum` tries the protocol in one call; `driver.run_aggregation`, which it calls, is the place
to start reading.
"""

from protocols.sums import secure_mean, secure_sum

__all__ = ["secure_mean", "secure_sum"]
