"""`secure_sum` and `secure_mean` give clear sums, and say in one line what is wrong."""

import inspect
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from protocols import secure_mean, secure_sum
from protocols.client.session import ClientSession
from protocols.errors import ConfigError, NotEnoughSurvivors
from protocols.params import BatchParams, Section, Task
from protocols.server.session import ServerSession


def floats(n=5, shape=(2, 3)):
    rng = np.random.default_rng(n)
    return {u: rng.uniform(-1, 1, shape) for u in range(n)}


def test_integers_are_summed_exactly():
    vectors = {1: [1, -2, 8388608], 5: [4, 5, -8388608], 9: np.array([7, 8, 9], np.uint8)}
    total = secure_sum(vectors)
    assert total.dtype == np.int64
    assert total.tolist() == [12, 11, 9]


@pytest.mark.parametrize("malicious", [False, True])
def test_floats_are_summed_up_to_their_rounding(malicious):
    vectors = floats()
    total = secure_sum(vectors, clip=1.0, bits=12, malicious=malicious)
    assert total.shape == (2, 3)
    error = np.abs(total - sum(vectors.values()))
    assert 0 < error.max() < 5 * 2 / (2**12 - 1)


def test_values_beyond_the_clip_are_cut_and_nan_counts_as_zero():
    vectors = {0: [5.0, np.nan], 1: [-5.0, 0.25], 2: [0.5, np.inf]}
    total = secure_sum(vectors, clip=1.0, bits=24)
    assert total == pytest.approx([0.5, 1.25], abs=1e-6)


def test_a_silent_client_is_in_no_sum_and_no_mean():
    vectors = floats(6)
    there = [vectors[u] for u in range(5)]
    mean = secure_mean(vectors, clip=1.0, bits=24, silent=[5])
    assert mean == pytest.approx(np.mean(there, axis=0), abs=1e-6)
    with pytest.raises(NotEnoughSurvivors):
        secure_sum(vectors, clip=1.0, silent=[3, 4, 5])


def test_the_same_entropy_gives_the_same_rounding():
    def drawn():
        rng = np.random.default_rng(3)
        return rng.bytes

    vectors = floats(4)
    one, two = (secure_sum(vectors, clip=1.0, bits=4, entropy=drawn()) for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("vectors", "options", "words"),
    [
        ({1: [1], 2: [2]}, {}, "3 clients or more, not 2"),
        ({1: [1], 2: [2], 3: [3.0]}, {}, "all integers or all floats"),
        ({1: ["a"], 2: ["b"], 3: ["c"]}, {}, "all integers or all floats"),
        ({1: [1], 2: [2], 3: [3, 4]}, {}, "one shape"),
        ({1: [], 2: [], 3: []}, {}, "all integers or all floats|empty"),
        ({1: [0.1], 2: [0.2], 3: [0.3]}, {}, "floats need clip="),
        ({1: [0.1], 2: [0.2], 3: [0.3]}, {"clip": -1.0}, "clip must be"),
        ({1: [0.1], 2: [0.2], 3: [0.3]}, {"clip": 1.0, "bits": 25}, "bits must be 1 to 24"),
        ({1: [0.1], 2: [0.2], 3: [0.3]}, {"clip": 1.0, "bits": 0}, "bits must be 1 to 24"),
        ({1: [1], 2: [2], 3: [3]}, {"bits": 8}, "for floats"),
        ({1: [1], 2: [2], 3: [8388609]}, {}, "-8388608 to 8388608"),
        ({1: [1], 2: [2], 3: [3]}, {"threshold": 1}, "threshold"),
        ({1: [1], 2: [2], 3: [3]}, {"silent": [4]}, "silent"),
        ({"a": [1], "b": [2], "c": [3]}, {}, "whole numbers"),
        ({-1: [1], 2: [2], 3: [3]}, {}, "client id"),
    ],
)
def test_what_does_not_fit_is_one_line(vectors, options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        secure_sum(vectors, **options)
    assert "\n" not in str(caught.value)


def test_many_clients_sum_integers_in_a_smaller_range():
    # 600 inputs of 24 bits do not fit a 32-bit field.
    with pytest.raises(ConfigError, match="for 600 clients"):
        secure_sum({u: [5_000_000] for u in range(600)})


def test_the_code_of_the_docstring_gives_the_sum():
    text = inspect.getdoc(secure_sum).split("::\n")[1].split("Args:")[0]
    batch = BatchParams(session=bytes(32), roster=(1, 2, 3), threshold=3, batch=0, steps=1)
    section = Section(name="values", length=2, maximum=100, clip=1.0)
    task = Task(step=0, kind="sum", sections=(section,), broadcast_digest=bytes(32))
    names = {
        "ServerSession": ServerSession,
        "ClientSession": ClientSession,
        "os": os,
        "batch": batch,
        "task": task,
        "inputs": {u: {"values": np.array([u, 10 * u], np.uint32)} for u in batch.roster},
    }
    exec(textwrap.dedent(text), names)  # noqa: S102 - the project's own example
    assert names["total"]["values"].tolist() == [6, 60]


def test_the_two_functions_take_the_same_arguments():
    one, two = (inspect.signature(f).parameters for f in (secure_sum, secure_mean))
    assert one == two


def test_the_package_imports_no_torch():
    code = "import protocols, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_memory_cannot_hold_is_refused_before_it_is_taken():
    numbers = np.broadcast_to(np.int8(1), 1 << 50)
    with pytest.raises(ConfigError, match=r"takes 48413.* GB, more than this machine has; sum one"):
        secure_sum(dict.fromkeys(range(3), numbers))
