"""Decoders are quick on junk, and damaged records are typed errors."""

import time

import pytest
from secagg_helpers import make_params

from protocols import messages
from protocols.audit import strategies as some
from protocols.client.durable import DurableClient
from protocols.errors import (
    DecodeError,
    LocalProtocolError,
)
from protocols.messages import Message


@pytest.mark.parametrize("kind", Message.__subclasses__(), ids=lambda kind: kind.__name__)
def test_the_longest_junk_is_refused_quickly(kind):
    """Megabytes that look like a message: within a second, on any machine that runs the tests."""
    large = make_params(3000, ("g", 10**6, 4))
    size = messages.max_size(kind, large.batch, large.task)
    for filler in (b"\x91", b"\xc4\x00", b"\xdc\xff\xff", b"\x00"):
        data = (b"\x93" + bytes([kind.__struct_config__.tag]) + filler * size)[:size]
        began = time.process_time()
        with pytest.raises(DecodeError):
            messages.decode(data, kind, large.batch, large.task)
        assert time.process_time() - began < 1


def test_records_that_are_not_utf8_or_nested_deeply_are_damaged():
    """Found by `fuzzing`: UnicodeDecodeError and RecursionError once came out."""
    party = next(iter(some.parties(some.make_batch(4, "semi-honest")).values()))
    start = b"\x84\xa4off0\xc4\0\xa6client\1\xa5state\x81\xa4type"
    for record in (
        start + b"\xa2\xff\xfe\xa7answers\x80",
        start + b"\xa5Start\xa7answers\x81\xa2\xff\xfe\xc0",
        b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0",
    ):
        with pytest.raises(LocalProtocolError, match="damaged"):
            DurableClient(party, some.seeded_entropy(b""), record)
