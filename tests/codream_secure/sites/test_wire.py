"""Bytes that are no message are one kind of error, whatever is wrong with them."""

import msgspec
import pytest

from codream_secure.sites import wire

NO_TEXT = b"\xa1\xff"  # MessagePack: a string of one byte that is no UTF-8
REFUSED = b"\x94\xc4\x00\xc4\x00" + NO_TEXT + b"\xc4\x00"
BEGIN = wire.encode(wire.Begin(1, b"x", 4, 3, "semi-honest", 2)).replace(b"-honest", b"\xffhonest")


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (wire.decode, BEGIN),
        (wire.decode, b"\x91" + NO_TEXT),
        (wire.decode_answer, REFUSED),
        (wire.decode_present, b"\x95" + NO_TEXT + b"\x01\x00\x90\x90"),
        (wire.decode_joined, b"\x93" + NO_TEXT + b"\x01\x00"),
        (wire.decode_claim, b"\x93" + NO_TEXT + b"\x01\x00"),
    ],
    ids=["a field", "a tag", "an answer", "Present", "Joined", "Claim"],
)
def test_text_that_is_no_utf_8_is_an_error_like_others(decode, data):
    with pytest.raises(msgspec.DecodeError):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"\xff", msgspec.msgpack.encode(["Ask", 1])])
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(msgspec.DecodeError):
        wire.decode(data)
