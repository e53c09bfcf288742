"""The decoder of broadcasts: a request, or RequestRefused, whatever the bytes are."""

import tracemalloc

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codream_secure.aggregation.decoding import decode_model_request, decode_request
from codream_secure.aggregation.requests import (
    VERSION,
    DreamRequest,
    LabelRequest,
    LabelTerms,
    ModelRequest,
    NoisyTerms,
    SoftLabels,
    Student,
    encode,
    pixels,
)
from codream_secure.aggregation.sections import sections
from codream_secure.errors import RequestRefused

STUDENT = Student(bytes(4 * 2 * 3), 3, "jsd", 1.0, 4, 1.0)
DREAMS = DreamRequest(
    VERSION, 1, 0, 3, (2, 1, 2, 2), bytes(range(8)), 4, 1.0, 1.0, 0.0, 0.5, student=STUDENT
)
LABELS = LabelRequest(
    VERSION, 1, 0, (2, 1, 2, 2), bytes(range(8)), LabelTerms(12, 0.5, "logits", 4.0, 10)
)
BOTH = msgspec.structs.replace(DREAMS, labels=LabelTerms(8, 0.5, "probabilities", 4.0, 10))
NOISY = msgspec.structs.replace(LABELS.labels, noisy=NoisyTerms(32, 9, 4, 3, 255, "skellam"))
VALID = [
    encode(DREAMS),
    encode(LABELS),
    encode(BOTH),
    encode(msgspec.structs.replace(LABELS, labels=NOISY)),
]
MODEL = ModelRequest(VERSION, 1, bytes(32), (2, 3), (0.1, 0.2), 8)


def decoded_or_refused(data: bytes) -> None:
    """The oracle: nothing but RequestRefused comes out, and what is accepted can be worked on."""
    try:
        request = decode_request(data)
    except RequestRefused:
        return
    assert encode(request) == data
    assert pixels(request).shape == request.shape
    assert all(section.length > 0 for section in sections(request))


def with_changes(request, **changes):
    """Return the request with other fields; those of a label request's terms by their own names."""
    if isinstance(request, LabelRequest):
        changes.pop("weight_cap", None)
        own = {k: changes.pop(k) for k in LabelTerms.__struct_fields__ if k in changes}
        changes["labels"] = msgspec.structs.replace(request.labels, **own)
    return msgspec.structs.replace(request, **changes)


numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(-4, 4)


@given(
    st.sampled_from([DREAMS, LABELS]),
    st.tuples(numbers, numbers, numbers, numbers),
    st.binary(max_size=16),
    st.fixed_dictionaries(
        {},
        optional={"bits": numbers, "clip": st.floats(), "weight_cap": numbers, "batches": numbers},
    ),
)
@example(DREAMS, (-1, -8, 1, 1), bytes(8), {})
@example(DREAMS, (2**32, 2**32, 1, 1), b"", {})
@example(DREAMS, (-1, -1, -1, -1), b"\0", {})
@example(DREAMS, (0, 1, 1, 1), b"", {})
@example(LABELS, (2, 1, 2, 2), bytes(8), {"bits": 2**40})  # 1 << bits must not be computed
@example(LABELS, (2, 1, 2, 2), bytes(8), {"bits": -1})
def test_any_field_values(request_, shape, dreams, changes):
    changed = with_changes(request_, shape=shape, dreams=dreams, **changes)
    decoded_or_refused(encode(changed))


@pytest.mark.parametrize(
    "change",
    [{"classes": 0}, {"classes": -3}, {"classes": 2**62}, {"bits": 2**40}],
)
def test_an_answer_of_impossible_size_is_refused(change):
    with pytest.raises(RequestRefused, match="no masked input"):
        decode_request(encode(with_changes(LABELS, **change)))


@pytest.mark.parametrize("batches", [-1, 0, 3, 4, 2**62])
def test_dreams_that_are_not_so_many_equal_batches_are_refused(batches):
    for valid in (DREAMS, LABELS):
        assert valid.shape[0] == 2
        with pytest.raises(RequestRefused, match="equal batches"):
            decode_request(encode(msgspec.structs.replace(valid, batches=batches)))


@given(
    st.builds(
        Student, st.binary(max_size=40), numbers, st.just("kl"), st.floats(), numbers, st.floats()
    )
)
@example(msgspec.structs.replace(STUDENT, bits=2**40))
@example(msgspec.structs.replace(STUDENT, classes=-3))
@example(msgspec.structs.replace(STUDENT, classes=0, logits=b""))
def test_any_student(student):
    decoded_or_refused(encode(msgspec.structs.replace(DREAMS, student=student)))


@given(
    st.builds(
        LabelTerms,
        numbers,
        st.floats(),
        st.just("logits"),
        st.floats(),
        numbers,
        st.just("confidence"),
    )
)
@example(LabelTerms(2**40, 0.5, "logits", 4.0, 10))
@example(LabelTerms(8, 0.5, "logits", 4.0, -3))
def test_any_labels_beside_a_gradient(labels):
    decoded_or_refused(encode(msgspec.structs.replace(DREAMS, labels=labels)))


def test_labels_with_noise_do_not_travel_with_a_gradient():
    with pytest.raises(RequestRefused, match="do not travel with a gradient"):
        decode_request(encode(msgspec.structs.replace(DREAMS, labels=NOISY)))


@given(
    st.lists(numbers, max_size=4),
    st.lists(st.floats(), max_size=4),
    st.fixed_dictionaries({}, optional={"bits": numbers, "weight_cap": numbers}),
)
@example([2**62, 2**62], [1.0, 1.0], {})
@example([1], [5e-324], {})
def test_any_request_for_a_model(sizes, scales, changes):
    changed = msgspec.structs.replace(MODEL, sizes=tuple(sizes), scales=tuple(scales), **changes)
    try:
        request = decode_model_request(encode(changed))
    except RequestRefused:
        return
    assert all(section.length > 0 for section in sections(request))


@given(st.sampled_from(VALID), st.data())
def test_mutated_requests(data, draw):
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(changed)))
        end = draw.draw(st.integers(at, min(at + 4, len(changed))))
        changed[at:end] = draw.draw(st.binary(max_size=4))
    decoded_or_refused(bytes(changed))


@given(st.binary(max_size=64))
@example(b"\x9b\xa2\xff\xfe\x01")  # a tag that is not UTF-8
@example(b"\x91" * 5000)
@example(encode(SoftLabels(VERSION, 1, 0, bytes(32), 3, (b"x",))))
def test_junk(data):
    decoded_or_refused(data)


@pytest.mark.parametrize("data", VALID, ids=["dreams", "labels", "both", "noisy"])
def test_prefixes_extensions_and_flips(data):
    for end in range(len(data)):
        with pytest.raises(RequestRefused):
            decode_request(data[:end])
    with pytest.raises(RequestRefused):
        decode_request(data + b"\0")
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        decoded_or_refused(bytes(flipped))


@pytest.mark.parametrize("header", [b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_declared_length_reserves_no_memory(header):
    for cut in range(1, len(VALID[0])):
        tracemalloc.start()
        decoded_or_refused(VALID[0][:cut] + header)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
