"""The benchmark's count of bytes is what whole runs send, to the byte."""

import numpy as np
import pytest

from benchmarks.masking.expansion import BITS, GATES, Batch
from protocols.driver import BatchSession
from protocols.params import Task
from protocols.phases import Phase
from protocols.primitives.keys import SigningKey
from protocols.signing import Credentials


def counted_in_a_run(case: Batch) -> dict[int, dict[tuple[Phase, str], int]]:
    """Client -> (phase, direction) -> bytes, of a batch in which nobody drops out."""
    params, task = case.params, case.task
    keys = {u: SigningKey.from_private_bytes(u.to_bytes(32, "big")) for u in params.roster}
    session = BatchSession(
        bytes(32),
        params.roster,
        params.threshold,
        credentials=Credentials(keys) if case.malicious else None,
    )
    session.prepare(case.steps)
    sums: dict[int, dict[tuple[Phase, str], int]] = {u: {} for u in params.roster}
    for step in range(case.steps):
        inputs = {
            u: {"x": np.full(case.length, 2**BITS - 1, dtype=np.uint32)} for u in params.roster
        }
        now = Task(
            step=step, kind=task.kind, sections=task.sections, broadcast_digest=bytes([step]) * 32
        )
        result = session.step(inputs, now)
        assert set(result.totals["x"].tolist()) == {case.clients * (2**BITS - 1)}
        for phase, directions in result.bytes.items():
            for direction, sizes in directions.items():
                for u, size in sizes.items():
                    where = phase, direction
                    sums[u][where] = sums[u].get(where, 0) + size
    return sums


@pytest.mark.parametrize("malicious", [False, True], ids=["semi-honest", "malicious"])
@pytest.mark.parametrize(
    ("clients", "length", "steps"),
    # On both sides of where a header of MessagePack grows: 16 entries, 256 bytes, 65,536 bytes.
    [(3, 1, 1), (5, 100, 8), (16, 65, 2), (17, 33_000, 8)],
)
def test_every_client_of_a_run_sends_and_gets_what_is_counted(clients, length, steps, malicious):
    case = Batch(clients, length, steps, malicious=malicious)
    counts = case.counts()
    for client, sizes in counted_in_a_run(case).items():
        assert sizes == counts, client


def test_the_expansion_is_the_bytes_of_the_batch_over_those_of_its_inputs():
    case = Batch(5, 1000, steps=4)
    measured = sum(counted_in_a_run(case)[0].values())
    assert case.expansion() == measured / (4 * 1000 * 2)


def test_more_steps_than_have_indices_of_one_byte_are_refused():
    assert Batch(3, 1, steps=128)
    with pytest.raises(ValueError, match="128"):
        Batch(3, 1, steps=129)


def test_the_gates_are_of_batches_at_the_sizes_of_the_headline():
    assert [(case.clients, case.length, bound) for case, bound in GATES] == [
        (2**10, 2**20, 1.73),
        (2**14, 2**24, 1.98),
    ]
    assert all(case.steps >= 8 and not case.malicious for case, _ in GATES)
