"""Wrong shares: their senders are named and the sum is exact (SPEC 3.7, 6.4)."""

import msgspec
import pytest
from refusals import ME, PARAMS
from secagg_helpers import Run, make_params, plain_sum

from protocols import messages
from protocols.client import bundles as client_bundles
from protocols.client import states as client_states
from protocols.errors import (
    DecodeError,
    LocalProtocolError,
    RemoteProtocolError,
    SeedLost,
)
from protocols.messages import (
    Advertisement,
    ShareBundles,
    UnmaskShares,
)
from protocols.phases import Phase
from protocols.seeds import commit_all


def test_wrong_numbers_of_bundles_and_shares_are_refused():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    message = messages.decode(
        run.answer(ME, Phase.SHARE_KEYS), ShareBundles, PARAMS.batch, PARAMS.task
    )
    with pytest.raises(RemoteProtocolError, match="number of bundles"):
        run.server.receive(
            ME, messages.encode(ShareBundles(message.commitments, message.bundles[1:]))
        )
    for shares in (
        UnmaskShares(0, (bytes(32),) * 4, ()),
        UnmaskShares(0, (bytes(32),) * 4, (bytes(32),)),
    ):
        run = Run(PARAMS, Phase.MASKED_INPUT)
        with pytest.raises(RemoteProtocolError, match="number of shares"):
            run.server.receive(ME, messages.encode(shares))
    run = Run(PARAMS, Phase.MASKED_INPUT)
    with pytest.raises(DecodeError, match="field element"):
        run.server.receive(ME, messages.encode(UnmaskShares(0, (b"\xff" * 32,) * 5, ())))


def answered(run: Run, liars: dict[int, object]) -> None:
    """Round 3 with the shares of some clients changed."""
    for u in run.replies:
        data = run.answer(u, Phase.UNMASKING)
        if u in liars:
            message = messages.decode(data, UnmaskShares, run.batch)
            data = messages.encode(liars[u](message))
        run.server.receive(u, data)
    run.server.end_round()


def wrong_key_share(m: UnmaskShares) -> UnmaskShares:
    return UnmaskShares(m.key, m.self_shares, tuple(bytes(32) for _ in m.key_shares))


def wrong_self_shares(m: UnmaskShares) -> UnmaskShares:
    return UnmaskShares(m.key, (bytes(32), *m.self_shares[1:]), m.key_shares)


@pytest.mark.parametrize("lie", [wrong_key_share, wrong_self_shares])
def test_wrong_shares_are_named_and_the_sum_is_exact(lie):
    params = make_params(6, threshold=4)
    run = Run(params, Phase.SHARE_KEYS)
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    answered(run, {13: lie})
    result = run.server.result
    assert result.wrong == {13}
    assert 13 in run.server.candidates  # its share may have been dealt to it wrong
    totals = {k: v.tolist() for k, v in result.totals.items()}
    assert totals == plain_sum(run.inputs, result.survivors, params)


def test_two_wrong_shares_of_seven_are_named():
    params = make_params(7, threshold=4)
    run = Run(params, Phase.MASKED_INPUT)
    answered(run, {10: wrong_self_shares, 19: wrong_self_shares})
    assert run.server.result.wrong == {10, 19}
    assert (
        run.server.result.totals["g"].tolist() == plain_sum(run.inputs, params.roster, params)["g"]
    )


def test_too_many_wrong_shares_fail_the_step():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    with pytest.raises(RemoteProtocolError, match="committed seed") as caught:
        answered(run, {ME: wrong_key_share})
    assert caught.value.peer == 16
    with pytest.raises(LocalProtocolError):
        run.server.end_round()


def test_a_dealer_whose_commitment_is_another_seeds_is_named():
    params = make_params(6, threshold=4)
    run = Run(params)
    for u in params.roster:
        data = run.answer(u, Phase.ADVERTISE_KEYS)
        if u == 16:
            state = run.clients[u]._state
            advert = messages.decode(data, Advertisement, params.batch)
            other = client_states.OwnSeeds(bytes(32), state.seeds[0].self_mask)
            root = commit_all(client_bundles.commitments(run.clients[u]._party, [other]))
            data = messages.encode(msgspec.structs.replace(advert, commitment=root))
            run.clients[u]._state = msgspec.structs.replace(state, sent=data)
            leaves = client_bundles.commitments(run.clients[u]._party, [other])
        run.server.receive(u, data)
    run.replies = run.server.end_round()
    for u in params.roster:
        data = run.answer(u, Phase.SHARE_KEYS)
        if u == 16:
            bundles = messages.decode(data, ShareBundles, params.batch).bundles
            data = messages.encode(ShareBundles(leaves, bundles))
        run.server.receive(u, data)
    run.replies = run.server.end_round()
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    with pytest.raises(SeedLost, match="committed seed") as caught:
        run.round(Phase.UNMASKING)
    assert caught.value.peer == 16


def test_a_dealer_whose_seed_is_not_that_of_its_key_is_named():
    run = Run(PARAMS)
    for u in PARAMS.roster:
        data = run.answer(u, Phase.ADVERTISE_KEYS)
        if u == 16:
            session = run.clients[u]
            seeds = (client_states.OwnSeeds(bytes(32), session._state.seeds[0].self_mask),)
            root = commit_all(client_bundles.commitments(session._party, seeds))
            advert = messages.decode(data, Advertisement, PARAMS.batch)
            data = messages.encode(msgspec.structs.replace(advert, commitment=root))
            session._state = msgspec.structs.replace(session._state, sent=data, seeds=seeds)
        run.server.receive(u, data)
    run.replies = run.server.end_round()
    run.round(Phase.SHARE_KEYS)
    run.round(Phase.MASKED_INPUT, silent=frozenset({16}))
    with pytest.raises(RemoteProtocolError, match="advertised key") as caught:
        run.round(Phase.UNMASKING)
    assert caught.value.peer == 16
