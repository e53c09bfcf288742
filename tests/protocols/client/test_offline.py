"""What a client refuses in the offline exchange, and by which check (SPEC 6.2)."""

import msgspec
import pytest
from refusals import ME, PARAMS, bitmap, dead, refused
from secagg_helpers import Run, make_params

from protocols import messages
from protocols.client import bundles as client_bundles
from protocols.errors import (
    DecodeError,
    LocalProtocolError,
    RemoteProtocolError,
)
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    BundleReport,
    KeyDirectory,
    StepRequest,
)
from protocols.phases import Phase


def directory_of(run: Run) -> KeyDirectory:
    return messages.decode(run.replies[ME], KeyDirectory, run.params.batch, run.params.task)


def refused_delivery(run: Run, message: BundleDelivery, match: str) -> None:
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        run.clients[ME].open_bundles(messages.encode(message))
    assert (caught.value.peer, caught.value.phase) == (None, Phase.SHARE_KEYS)
    with pytest.raises(LocalProtocolError, match="Failed"):
        run.clients[ME].open_bundles(run.replies[ME])


def adverts(d: KeyDirectory) -> list[Advertisement]:
    return [messages.decode(data, Advertisement, PARAMS.batch) for data in d.advertisements]


def with_advert(d: KeyDirectory, index: int, advert: Advertisement) -> KeyDirectory:
    sent = list(d.advertisements)
    sent[index] = messages.encode(advert)
    return KeyDirectory(d.members, tuple(sent))


def without(d: KeyDirectory, *gone: int) -> KeyDirectory:
    keep = [i for i, u in enumerate(PARAMS.roster) if u not in gone]
    return KeyDirectory(
        messages.encode_set({PARAMS.roster[i] for i in keep}, PARAMS.roster),
        tuple(d.advertisements[i] for i in keep),
    )


def changed(index: int, **fields):
    """Advertisement `index` with some fields changed; a function gives a field from another's."""

    def change(d: KeyDirectory) -> KeyDirectory:
        values = {k: v(adverts(d)) if callable(v) else v for k, v in fields.items()}
        return with_advert(d, index, msgspec.structs.replace(adverts(d)[index], **values))

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: without(d, 10, 16), "fewer keys"),
        (lambda d: KeyDirectory(d.members, d.advertisements[:-1]), "numbers"),
        (changed(3, channel_key=lambda a: a[0].channel_key), "repeat"),
        (changed(3, channel_key=lambda a: a[3].mask_keys[0]), "repeat"),
        (changed(3, mask_keys=lambda a: a[2].mask_keys), "repeat"),
        (changed(3, mask_keys=()), "number of mask keys"),
        (lambda d: without(d, ME), "own keys"),
        (changed(1, channel_key=b"x" * 32), "own keys"),
        (changed(1, mask_keys=(b"x" * 32,)), "own keys"),
        (changed(1, commitment=b"x" * 32), "own keys"),
    ],
)
def test_bad_directories_are_refused(change, match):
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    refused(run, Phase.SHARE_KEYS, change(directory_of(run)), match)


@pytest.mark.parametrize("data", [b"", b"junk", bytes(500)])
def test_an_advertisement_that_does_not_decode_is_refused(data):
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    d = directory_of(run)
    bad = KeyDirectory(d.members, (data, *d.advertisements[1:]))
    run.replies[ME] = messages.encode(bad)
    with pytest.raises(DecodeError):
        run.answer(ME, Phase.SHARE_KEYS)
    dead(run, Phase.SHARE_KEYS)


def test_low_order_channel_key_is_refused_and_named():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    bad = changed(2, channel_key=bytes(32))(directory_of(run))
    refused(run, Phase.SHARE_KEYS, bad, "agreement", peer=16)


def test_low_order_mask_key_is_refused_and_named():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    run.begin()
    state = run.clients[ME]._state
    bad = {**state.mask_keys, 16: (bytes(32),)}
    run.clients[ME]._state = msgspec.structs.replace(state, mask_keys=bad)
    with pytest.raises(RemoteProtocolError, match="agreement") as caught:
        run.answer(ME, Phase.MASKED_INPUT)
    assert (caught.value.peer, caught.value.phase) == (16, Phase.MASKED_INPUT)


def delivery_of(run: Run) -> BundleDelivery:
    return messages.decode(run.replies[ME], BundleDelivery, run.params.batch, run.params.task)


@pytest.mark.parametrize(
    ("members", "count", "match"),
    [
        ((10, 13, 16), 2, "fewer sharers"),
        ((10, 16, 19, 22), 3, "own bundles"),
        ((10, 13, 16, 19, 22), 3, "numbers"),
        ((10, 13, 16, 19), 4, "numbers"),
    ],
)
def test_bad_deliveries_are_refused(members, count, match):
    run = Run(PARAMS, Phase.SHARE_KEYS)
    bundles = delivery_of(run).bundles[:count]
    refused_delivery(run, BundleDelivery(bitmap(*members), bundles), match)


def test_a_sharer_that_never_advertised_is_refused():
    run = Run(PARAMS)
    run.round(Phase.ADVERTISE_KEYS, silent=frozenset({22}))
    run.round(Phase.SHARE_KEYS)
    bundles = delivery_of(run).bundles
    message = BundleDelivery(bitmap(*PARAMS.roster), (*bundles, bundles[0]))
    refused_delivery(run, message, "advertised no keys")


def reported(run: Run, message: BundleDelivery) -> tuple[int, ...]:
    report = run.clients[ME].open_bundles(messages.encode(message))
    unopened = messages.decode(report, BundleReport, PARAMS.batch).unopened
    return messages.decode_set(unopened, PARAMS.roster)


def test_swapped_and_changed_bundles_name_the_sender():
    for swap in (True, False):
        run = Run(PARAMS, Phase.SHARE_KEYS)
        sharers, bundles = delivery_of(run).sharers, delivery_of(run).bundles
        first = bundles[1] if swap else bytes([bundles[0][0] ^ 1]) + bundles[0][1:]
        assert reported(run, BundleDelivery(sharers, (first, *bundles[1:]))) == (10,)


def test_a_bundle_of_another_recipient_does_not_open():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    theirs = messages.decode(run.replies[16], BundleDelivery, PARAMS.batch).bundles[0]
    mine = delivery_of(run)
    assert reported(run, BundleDelivery(mine.sharers, (theirs, *mine.bundles[1:]))) == (10,)


def test_a_bundle_of_another_batch_does_not_open():
    other = Run(make_params(5, step=8), Phase.SHARE_KEYS)  # same entropy, so the same channel keys
    run = Run(PARAMS, Phase.SHARE_KEYS)
    assert reported(run, delivery_of(other)) == (10, 16, 19, 22)


@pytest.mark.parametrize("plaintext", [b"\xff" * 64, bytes(32), bytes(63), bytes(65), bytes(96)])
def test_a_bundle_that_holds_anything_else_is_reported(monkeypatch, plaintext):
    run = Run(PARAMS, Phase.SHARE_KEYS)
    monkeypatch.setattr(client_bundles, "unseal", lambda *args: plaintext)
    assert reported(run, delivery_of(run)) == (10, 16, 19, 22)


def test_an_active_client_whose_bundle_did_not_open_is_refused():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    mine = delivery_of(run)
    run.replies[ME] = messages.encode(BundleDelivery(mine.sharers, (bytes(80), *mine.bundles[1:])))
    refused(run, Phase.MASKED_INPUT, StepRequest(0, bitmap(*PARAMS.roster)), "never opened")
