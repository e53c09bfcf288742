"""What wrong responders cost the server: the last round of a step of 600 clients, complete graph.

    python -m benchmarks.masking.wrong_shares            under a minute
    ... --quick         100 clients
    ... --json          each gate with its figure
    ... --record        also rewrites the recorded figures

The server code is the real one, from the last answer to the sum. Keys and masked inputs are left
out: the answers are made up, and the sum is of random numbers. Shares are those of one polynomial
plus a constant an owner, which the server cannot tell from shares of independent polynomials.
"""

import os
import time

import numpy as np

from benchmarks.shared.gates import Gate, Report, environment, progress
from benchmarks.shared.script import finish, parser
from protocols import context
from protocols.graph import Graph, share_points
from protocols.messages import UnmaskShares, encode_set
from protocols.params import BatchParams, Section, Task, default_threshold
from protocols.primitives import shamir
from protocols.seeds import Kind, SeedSlot
from protocols.server import step
from protocols.server.offline import BatchKeys

LENGTH = 1000  # of the vector; its masks take a small part of the time
MOST_SECONDS = 2.0


def answered(n: int, wrong: int) -> step.CollectingShares:
    """Return the server's state after the last answer, of which the first `wrong` are wrong."""
    roster, threshold = tuple(range(n)), default_threshold(n)
    batch = BatchParams(session=bytes(32), batch=0, steps=1, roster=roster, threshold=threshold)
    section = Section(name="g", length=LENGTH, maximum=255, clip=1.0)
    task = Task(step=0, kind="g", sections=(section,), broadcast_digest=bytes(32))
    entropy = os.urandom
    others = [int.from_bytes(shamir.draw_element(entropy), "big") for _ in range(threshold - 1)]
    first = shamir.split(bytes(32), others, share_points(roster).values())
    common = {u: int.from_bytes(first[x], "big") for u, x in share_points(roster).items()}
    seeds = {u: shamir.draw_element(entropy) for u in roster}
    slots = {u: SeedSlot(context.offline(batch), u, 0, Kind.SELF_MASK) for u in roster}
    commitments = {u: (bytes(32), slots[u].commit(seed)) for u, seed in seeds.items()}
    graph = Graph.of(batch, roster, bytes(32))
    keys = BatchKeys(bytes(32), graph, {}, commitments)
    everybody = encode_set(roster, roster)
    on = context.online(keys.off1, 0, task, n, everybody)
    running = step.Step(batch, keys, 0, task, roster, graph, on, entropy)
    total = np.zeros(LENGTH, dtype=np.uint32)
    state = step.CollectingShares.of(running, roster, roster, (total,))
    for u in roster:
        shift = 1 if u < wrong else 0
        values = ((common[u] + int.from_bytes(seeds[v], "big") + shift) % shamir.P for v in roster)
        shares = tuple(value.to_bytes(shamir.SIZE, "big") for value in values)
        state.received[u] = UnmaskShares(0, shares, ())
    return state


def main() -> None:
    """Run the cases and print the table."""
    options = parser(__doc__ or "", "100 clients in place of 600").parse_args()
    n = 100 if options.quick else 600
    most = (n - default_threshold(n)) // 2
    seconds = {}
    for wrong in (0, 2, most):
        progress(f"n = {n}, {wrong} wrong")
        state = answered(n, wrong)
        began = time.process_time()
        finished, _ = step.end_shares(state.step.batch, state)
        seconds[wrong] = time.process_time() - began
        if finished.wrong != frozenset(range(wrong)):
            raise SystemExit("the wrong responders were not found")
    rows = [
        {"clients": n, "wrong": wrong, "server CPU s": used, "over none wrong": used / seconds[0]}
        for wrong, used in seconds.items()
    ]
    gates = [
        Gate.below(f"{wrong} wrong of {n}, server CPU s", used, MOST_SECONDS)
        for wrong, used in seconds.items()
    ]
    finish(Report("wrong shares", rows, gates, environment()), options, "wrong_shares")


if __name__ == "__main__":
    main()
