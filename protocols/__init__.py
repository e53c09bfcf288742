"""Secure aggregation of integer vectors over prime fields (Bonawitz et al., CCS 2017).

Sans-IO: no sockets, no files, no clock, no ambient randomness. `protocols/SPEC.md` is normative;
`driver.run_aggregation` runs a whole aggregation in memory and is the place to start reading.
"""
