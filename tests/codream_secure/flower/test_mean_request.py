"""The broadcast of FedAvg under masks: what a client does not answer."""

import msgspec
import pytest

from codream_secure.errors import RequestRefused
from codream_secure.flower.mean_request import (
    MeanRequest,
    SentArray,
    decode_request,
    encode_request,
    task_of,
)
from codream_secure.sites import wire

ASKED = MeanRequest(
    version=wire.VERSION, step=3, evaluate=False, keys=("arrays", "config", "num-examples"),
    arrays=(
        SentArray("w", "float32", (2, 3), "numpy.ndarray", b"w"),
        SentArray("n", "int64", (), "numpy.ndarray", b"n"),
    ),
    config={}, run_config={}, bits=8, clip=1.0, fixed=("n",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 0}, "version 0"),
        ({"bits": 0}, "0 bits"),
        ({"bits": 25}, "25 bits"),
        ({"weigh": True}, "without a cap"),
        ({"weight_cap": 1 << 25}, "out of range"),
        ({"metrics": ("num-examples",)}, "not a metric"),
    ],
)
def test_a_request_that_asks_too_much_is_refused(change, told):
    assert decode_request(encode_request(ASKED)) == ASKED
    with pytest.raises(RequestRefused, match=told):
        decode_request(encode_request(msgspec.structs.replace(ASKED, **change)))


NO_TEXT = encode_request(ASKED).replace(b"num-examples", b"num-\xffxamples")


TOO_DEEP = encode_request(ASKED).replace(b"\x80\x80", b"\x81\xa1x" + b"\x91" * 5000 + b"\xc0\x80")


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc0", encode_request(ASKED)[:-1], b"\x00" * 50, NO_TEXT, TOO_DEEP],
    ids=range(6),
)
def test_bytes_that_are_no_request_are_refused(data):
    with pytest.raises(RequestRefused, match="not a request"):
        decode_request(data)


def test_a_request_is_for_one_step():
    broadcast = encode_request(ASKED)
    assert task_of(ASKED, broadcast, 3).sections == ASKED.sections
    with pytest.raises(RequestRefused, match="step 3, not 4"):
        task_of(ASKED, broadcast, 4)
