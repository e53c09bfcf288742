"""Sizes, headers and bitmaps; prefixes, flips and tags of every kind are in the audit's `codec`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_helpers import Run, make_inputs, make_params

from protocols import messages
from protocols.driver import DropSchedule, run_aggregation
from protocols.errors import DecodeError
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    BundleReport,
    Consistency,
    ConsistencyProof,
    KeyDirectory,
    MaskedInput,
    Nonce,
    NonceCommitments,
    RingAdvertisement,
    RingDirectory,
    ShareBundles,
    Signed,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.phases import Phase

PARAMS = make_params(4, ("g", 5, 4), ("h", 3, 11))
KINDS = {
    0x10: Advertisement,
    0x11: KeyDirectory,
    0x12: ShareBundles,
    0x13: BundleDelivery,
    0x14: MaskedInput,
    0x15: SurvivorSet,
    0x16: UnmaskShares,
    0x17: StepRequest,
    0x18: BundleReport,
    0x19: Consistency,
    0x1A: ConsistencyProof,
    0x1B: Signed,
    0x30: RingAdvertisement,
    0x31: NonceCommitments,
    0x32: Nonce,
    0x33: RingDirectory,
}


def samples():
    rare = (
        BundleReport(b"\2"),
        Consistency(3),
        ConsistencyProof(b"\7", (b"s" * 64, b"t" * 64, b"u" * 64)),
        Signed(messages.encode(Consistency(3)), b"s" * 64),
        RingAdvertisement(b"a" * 32, (b"b" * 32,), b"c" * 32, b"d" * 32),
        NonceCommitments(b"\5", (b"a" * 32, b"b" * 32)),
        Nonce(b"n" * 32),
        RingDirectory(b"\3", (b"a" * 32, b"b" * 32), (b"keys",)),
    )
    seen = {type(message): messages.encode(message) for message in rare}
    run_aggregation(
        make_inputs(PARAMS),
        PARAMS,
        drops=DropSchedule({10: Phase.MASKED_INPUT}),
        tap=lambda phase, direction, u, data: seen.setdefault(KINDS[data[1]], data),
    )
    return seen


SAMPLES = samples()
every_kind = pytest.mark.parametrize("kind", list(SAMPLES), ids=lambda kind: kind.__name__)


def test_every_message_is_covered():
    assert set(SAMPLES) == set(KINDS.values())


@every_kind
def test_round_trip(kind):
    message = messages.decode(SAMPLES[kind], kind, PARAMS.batch, PARAMS.task)
    assert messages.encode(message) == SAMPLES[kind]


@every_kind
def test_longest_message_fits_the_bound_and_one_more_byte_is_too_long(kind):
    n = PARAMS.n
    full = messages.encode_set(PARAMS.roster, PARAMS.roster)
    fields = [(s.length, PARAMS.field(s).bits) for s in PARAMS.sections]
    advertisement = Advertisement(bytes(32), (bytes(32),), bytes(32))
    on_ring = RingAdvertisement(bytes(32), (bytes(32),), bytes(32), bytes(32))
    longest = {
        Advertisement: advertisement,
        KeyDirectory: KeyDirectory(full, (messages.encode(advertisement),) * n),
        ShareBundles: ShareBundles((bytes(32),) * 2, (bytes(80),) * (n - 1)),
        BundleDelivery: BundleDelivery(full, (bytes(80),) * (n - 1)),
        BundleReport: BundleReport(full),
        StepRequest: StepRequest(1023, full),
        MaskedInput: MaskedInput(1023, tuple(bytes(messages.packed_size(*f)) for f in fields)),
        SurvivorSet: SurvivorSet(full),
        Consistency: Consistency(1023),
        ConsistencyProof: ConsistencyProof(full, (bytes(64),) * n),
        Signed: Signed(
            messages.encode(ShareBundles((bytes(32),) * 2, (bytes(80),) * (n - 1))), bytes(64)
        ),
        UnmaskShares: UnmaskShares(1023, (bytes(32),) * n, ()),
        RingAdvertisement: on_ring,
        NonceCommitments: NonceCommitments(full, (bytes(32),) * n),
        Nonce: Nonce(bytes(32)),
        RingDirectory: RingDirectory(full, (bytes(32),) * n, (messages.encode(on_ring),) * n),
    }[kind]
    assert len(messages.encode(longest)) <= messages.max_size(kind, PARAMS.batch, PARAMS.task)
    size = messages.max_size(kind, PARAMS.batch, PARAMS.task) + 1
    with pytest.raises(DecodeError, match="too long"):
        messages.decode(bytes(size), kind, PARAMS.batch, PARAMS.task)


@given(st.binary(max_size=80))
def test_junk_gives_only_decode_errors(data):
    for kind in SAMPLES:
        with pytest.raises(DecodeError):
            messages.decode(data, kind, PARAMS.batch, PARAMS.task)


@pytest.mark.parametrize(
    "byte", [b"\x91", b"\x92", b"\x81", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff"]
)
def test_nested_and_overlong_headers_give_only_decode_errors(byte):
    for kind, data in SAMPLES.items():
        large = make_params(3000, ("g", 10**6, 4))
        bound = messages.max_size(kind, large.batch, large.task)
        for start in (b"", data[:2], data[:1] + b"\x10"):
            with pytest.raises(DecodeError):
                messages.decode(
                    start + byte * (bound // len(byte) - 2),
                    kind,
                    large.batch,
                    large.task,
                )


def test_long_form_headers_are_not_canonical():
    data = SAMPLES[Advertisement]
    assert data[:1] == b"\x94"
    for longer in (b"\xdc\x00\x04" + data[1:], data[:1] + b"\xcc" + data[1:]):
        with pytest.raises(DecodeError):
            messages.decode(longer, Advertisement, PARAMS.batch, PARAMS.task)


def test_another_version_is_refused():
    data = bytearray(SAMPLES[Advertisement])
    data[1] += 0x10
    with pytest.raises(DecodeError):
        messages.decode(bytes(data), Advertisement, PARAMS.batch, PARAMS.task)
    with pytest.raises(DecodeError, match="tag"):
        messages.decode_upload(bytes(data), PARAMS.batch)
    with pytest.raises(DecodeError, match="tag"):
        messages.decode_upload(b"", PARAMS.batch)


@given(st.data())
def test_bitmaps(data):
    roster = make_params(data.draw(st.integers(3, 30))).roster
    members = data.draw(st.sets(st.sampled_from(roster)))
    bitmap = messages.encode_set(members, roster)
    assert len(bitmap) == (len(roster) + 7) // 8
    assert messages.decode_set(bitmap, roster) == tuple(sorted(members))
    with pytest.raises(DecodeError):
        messages.decode_set(bitmap + b"\0", roster)
    if len(roster) % 8:
        with pytest.raises(DecodeError):
            messages.decode_set(bitmap[:-1] + bytes([bitmap[-1] | 0x80]), roster)


def test_masked_elements_outside_the_field_are_refused():
    params = make_params(4, ("g", 2, 4))  # GF(61): 61, 62 and 63 are not elements
    for word in (61, 63):
        run = Run(params, Phase.SHARE_KEYS)
        run.begin()
        with pytest.raises(DecodeError, match="field"):
            run.server.receive(10, messages.encode(MaskedInput(0, (bytes([word, 0]),))))
    run = Run(params, Phase.SHARE_KEYS)
    run.begin()
    assert run.server.receive(10, messages.encode(MaskedInput(0, (bytes([60, 0]),))))


@pytest.mark.parametrize(
    "sections", [(), (bytes(2), bytes(2)), (bytes(1),), (bytes(3),), (b"\0\x10",)]
)
def test_masked_vectors_of_wrong_shape_are_refused(sections):
    run = Run(make_params(4, ("g", 2, 4)), Phase.SHARE_KEYS)
    run.begin()
    with pytest.raises(DecodeError):
        run.server.receive(10, messages.encode(MaskedInput(0, sections)))
