"""What the server refuses in the offline exchange (SPEC 6.1, 6.2)."""

import msgspec
import pytest
from refusals import ME, PARAMS, STEPS
from secagg_helpers import Run

from protocols import messages
from protocols.errors import (
    DecodeError,
    RemoteProtocolError,
)
from protocols.messages import (
    Advertisement,
    ShareBundles,
)
from protocols.phases import Phase


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"channel_key": bytes(32)}, "low order"),
        ({"mask_keys": (b"\1" + bytes(31),)}, "low order"),
        ({"mask_keys": ()}, "number of mask keys"),
        ({"mask_keys": (b"a" * 32, b"b" * 32)}, "too long|number of mask keys"),
        ({"channel_key": b"c" * 32, "mask_keys": (b"c" * 32,)}, "repeat"),
    ],
)
def test_keys_that_would_stop_the_others_are_refused_by_the_server(fields, match):
    run = Run(PARAMS)
    for u in PARAMS.roster:
        data = run.answer(u, Phase.ADVERTISE_KEYS)
        if u == 16:
            advert = messages.decode(data, Advertisement, PARAMS.batch)
            data = messages.encode(msgspec.structs.replace(advert, **fields))
            with pytest.raises((RemoteProtocolError, DecodeError), match=match):
                run.server.receive(u, data)
        else:
            run.server.receive(u, data)
    run.replies = run.server.end_round()
    for phase in STEPS[1:]:
        run.round(phase)
    assert run.server.result.survivors == (10, 13, 19, 22)


def test_a_copied_key_bars_who_came_second():
    run = Run(PARAMS)
    run.server.receive(10, run.answer(10, Phase.ADVERTISE_KEYS))
    advert = messages.decode(run.answer(13, Phase.ADVERTISE_KEYS), Advertisement, PARAMS.batch)
    first = next(iter(run.server._state.received.values()))
    copy = msgspec.structs.replace(advert, mask_keys=first.mask_keys)
    with pytest.raises(RemoteProtocolError, match="repeat"):
        run.server.receive(13, messages.encode(copy))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: ShareBundles(m.commitments, (m.bundles[0][:-1], *m.bundles[1:])), "size"),
        (lambda m: ShareBundles(m.commitments[:1], m.bundles), "number of commitments"),
        (lambda m: ShareBundles(m.commitments[::-1], m.bundles), "not those advertised"),
    ],
)
def test_bundles_that_do_not_fit_are_refused(change, match):
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    message = messages.decode(run.answer(ME, Phase.SHARE_KEYS), ShareBundles, PARAMS.batch)
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        run.server.receive(ME, messages.encode(change(message)))
    assert caught.value.peer == ME
