"""Pairs that lost each other: nobody is evicted, no cut separates the honest (SPEC 1.6)."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_helpers import (
    Run,
    fixed_entropy,
    make_inputs,
    make_params,
    malicious_params,
    plain_sum,
    signing_keys,
)

from protocols import messages, pairs
from protocols.client import step
from protocols.client.states import HeldShares, KeyShare, Masked, Party, SelfShare
from protocols.driver import BatchSession
from protocols.errors import DecodeError, NotEnoughSurvivors, RemoteProtocolError
from protocols.graph import Graph
from protocols.messages import BundleDelivery, BundleReport, StepRequest, SurvivorSet
from protocols.params import Ring
from protocols.phases import OPEN_BUNDLES, Phase
from protocols.policy import Policy
from protocols.server.session import ServerSession
from protocols.signing import Credentials

TEN = malicious_params(10, roster=tuple(range(10)))  # t = 7, and so n_C = 3
ALL = tuple(itertools.combinations(range(10), 2))


def request(lost, members=range(10)) -> StepRequest:
    return StepRequest(0, messages.encode_set(tuple(members), TEN.roster), tuple(lost))


# -- who stays ---------------------------------------------------------------------------------


def test_three_of_ten_evict_nobody():
    """Before, {7, 8, 9} put {0, 1, 2} out: ties went to the smaller id."""
    run = Run(TEN, Phase.SHARE_KEYS)
    for liar, victim in itertools.product((7, 8, 9), (0, 1, 2)):
        data = messages.decode(run.replies[victim], BundleDelivery, TEN.batch)
        bundles = list(data.bundles)
        bundles[liar - 1] = bytes(len(bundles[0]))
        run.replies[victim] = messages.encode(BundleDelivery(data.sharers, tuple(bundles)))
    for phase in (Phase.MASKED_INPUT, Phase.CONSISTENCY, Phase.UNMASKING):
        run.round(phase)
    assert run.server.result.survivors == TEN.roster
    totals = {k: v.tolist() for k, v in run.server.result.totals.items()}
    assert totals == plain_sum(run.inputs, TEN.roster, TEN)


def test_the_victims_have_exactly_t_holders_left_and_one_dropout_costs_the_step():
    """What a coalition can still do; SECURITY.md says so."""
    run = Run(TEN, Phase.SHARE_KEYS)
    for liar in (7, 8, 9):
        report = BundleReport(messages.encode_set((0, 1, 2), TEN.roster))
        run.server.receive(liar, run.clients[liar]._party.wrap(run.server.keys.off1, report))
    run.round(Phase.MASKED_INPUT)
    assert run.server.candidates == TEN.roster
    again = Run(TEN, Phase.SHARE_KEYS)
    for liar in (7, 8, 9):
        off1 = again.server.keys.off1
        again.server.receive(liar, again.clients[liar]._party.wrap(off1, report))
    with pytest.raises(NotEnoughSurvivors, match="client 0 left, 7 needed"):
        again.round(Phase.MASKED_INPUT, silent=frozenset({5}))


def brute_force(members, lost, needed, near=None):
    """Take clients out in one order, then in the other; both must agree."""
    results = []
    for order in (sorted(members), sorted(members, reverse=True)):
        stay, changed = list(order), True
        while changed:
            changed = False
            for u in list(stay):
                holders = [v for v in stay if near is None or v in near[u]]
                if sum((min(u, v), max(u, v)) not in lost for v in holders) < needed:
                    stay.remove(u)
                    changed = True
        results.append(tuple(sorted(stay)))
    first, second = results
    assert first == second
    return first


@given(st.data())
def test_who_has_too_few_holders_leaves_whatever_the_order(data):
    n = data.draw(st.integers(4, 12))
    ring = data.draw(st.sampled_from([None, Ring(4, 2), Ring(4, 3)])) if n > 5 else None
    params = make_params(n, roster=tuple(range(n)), ring=ring)
    graph = Graph.of(params.batch, params.roster, b"seed")
    near = ring and {u: graph.neighbours(u) for u in params.roster}
    every = list(itertools.combinations(range(n), 2))
    lost = data.draw(st.sets(st.sampled_from(every)))
    members = tuple(sorted(data.draw(st.sets(st.sampled_from(params.roster), min_size=1))))
    expected = brute_force(members, lost, params.batch.share_threshold, near)
    found = graph.without(lost).stable(members)
    if ring is None and len(found) < params.threshold:
        assert expected == ()  # the threshold decides about all of them
    else:
        assert found == expected


def test_800_clients_of_which_a_third_lies_as_far_as_it_can():
    n, liars = 800, 266
    params = make_params(n, roster=tuple(range(n)))  # t = 534 = n - liars
    lost = {(v, u) for u in range(n - liars, n) for v in range(liars)}
    graph = Graph.of(params.batch, params.roster, b"seed").without(lost)
    assert graph.stable(params.roster) == params.roster
    assert graph.weakest(params.roster, frozenset(params.roster)) == (534, 0)
    # One holder less, for whatever reason, and all victims have too few. SECURITY.md says so.
    more = graph.without(lost | {(0, n - liars - 1)})
    assert more.stable(params.roster) == tuple(range(liars, n))


# -- the proof of SPEC 1.6 ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared():
    """Ten honest clients of which each holds the shares of all."""
    run = Run(TEN, Phase.SHARE_KEYS)
    run.begin()
    return {u: (client._party, client.state) for u, client in run.clients.items()}


def accepts(prepared, u, message) -> bool:
    party, state = prepared[u]
    try:
        step.mask_input(party, state, message, TEN.task, make_inputs(TEN)[u])
    except RemoteProtocolError as error:
        return "too few active neighbours" not in str(error)
    return True


def cuts(clients):
    first, *rest = clients
    for size in range(len(rest)):
        for others in itertools.combinations(rest, size):
            yield frozenset({first, *others})


@pytest.mark.parametrize("corrupt", [0, 1, 2, 3])
def test_a_cut_along_any_line_stops_one_of_its_sides(prepared, corrupt):
    """The corrupt clients keep all their pairs, so that both sides have as many holders as can be.

    At most one side goes on; with fewer than t clients that go on, no sum comes out.
    """
    honest = tuple(range(10 - corrupt))
    for side in cuts(honest):
        other = frozenset(honest) - side
        lost = [pair for pair in ALL if len(side.intersection(pair)) == 1 and max(pair) in honest]
        if not lost:
            continue
        # All clients of one side are in the same position; two of them stand for it.
        going = {min(s): accepts(prepared, min(s), request(lost)) for s in (side, other)}
        assert sum(going.values()) <= 1, (side, other)
        alone = [len(s) + corrupt for s in (side, other) if going[min(s)]]
        assert all(count >= 7 for count in alone)


def linked(clients, lost) -> bool:
    seen, todo = set(), [min(clients)]
    while todo:
        u = todo.pop()
        seen.add(u)
        todo += [v for v in clients - seen if (min(u, v), max(u, v)) not in lost and v != u]
    return seen == clients


@given(st.data())
def test_honest_survivors_that_sign_hang_together_whatever_is_lost(data):
    """Random lost pairs and survivor sets: whoever accepts both belongs to one linked group."""
    bad = data.draw(st.sets(st.sampled_from(range(10)), max_size=3))
    lost = data.draw(st.sets(st.sampled_from(ALL), max_size=25))
    survivors = data.draw(st.sets(st.sampled_from(range(10)), min_size=7))
    signing = {u for u in survivors - bad if signs(u, lost, survivors)}
    if len(signing) + len(bad) >= TEN.threshold:
        assert linked(signing, lost)


KEYS = signing_keys(TEN.roster)
PARTIES = {u: Party(TEN.batch, u, KEYS[u], Policy()) for u in TEN.roster}


def signs(u, lost, survivors) -> bool:
    share = HeldShares(KeyShare(bytes(32)), SelfShare(bytes(32)))
    kept = [v for v in range(10) if (min(u, v), max(u, v)) not in lost]
    others = tuple(v for v in range(10) if v not in kept)
    running = Masked(0, bytes(32), dict.fromkeys(kept, share), others)
    try:
        step.check_survivors(PARTIES[u], running, survivors)
    except RemoteProtocolError:
        return False
    return True


def test_both_ends_mask_without_each_other_and_give_no_share_of_each_other(prepared):
    lost = ((0, 1), (0, 9))
    party, state = prepared[0]
    move = step.mask_input(party, state, request(lost), TEN.task, make_inputs(TEN)[0])
    assert set(move.state.current.held) == set(range(10)) - {1, 9}
    assert set(move.state.current.non_neighbours) == {1, 9}
    everybody = SurvivorSet(messages.encode_set(TEN.roster, TEN.roster))
    assert step.confirm(party, move.state, move.state.current, everybody).reply is not None


# -- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "members", "error"),
    [
        (((1, 10),), range(10), DecodeError),
        (((2, 1),), range(10), DecodeError),
        (((1, 1),), range(10), DecodeError),
        (((1, 2), (0, 1)), range(10), DecodeError),
        (((0, 1), (0, 1)), range(10), DecodeError),
        (((0, 9),), range(9), RemoteProtocolError),
        (((0, 1), (0, 2), (0, 3), (0, 4)), range(10), RemoteProtocolError),
    ],
)
def test_bad_lists_of_pairs_are_refused(prepared, lost, members, error):
    party, state = prepared[0]
    with pytest.raises(error):
        step.mask_input(party, state, request(lost, members), TEN.task, make_inputs(TEN)[0])


@given(st.sets(st.sampled_from(ALL)))
def test_pairs_are_listed_in_one_way(lost):
    roster = tuple(range(5, 105, 10))
    named = {(roster[i], roster[k]) for i, k in lost}
    places = pairs.encode(named, roster)
    assert places == tuple(sorted(lost))
    assert set(pairs.decode(places, roster)) == named
    assert pairs.encode(((v, u) for u, v in named), roster) == places


def test_a_step_with_every_pair_that_can_be_lost_still_fits_a_message():
    lost = [pair for pair in ALL if max(pair) >= 7 and min(pair) < 3][:15]
    assert len(lost) <= messages.most_lost(TEN.batch)
    data = messages.encode(request(lost))
    assert messages.decode(data, StepRequest, TEN.batch).lost == tuple(lost)
    with pytest.raises(DecodeError, match="too long"):
        messages.decode(messages.encode(request(ALL * 4)), StepRequest, TEN.batch)


# -- bars for the session ----------------------------------------------------------------------


class Junk(BatchSession):
    """One client answers one stage with junk; faults are noted, not raised."""

    junk = (0, Phase.MASKED_INPUT)

    def _session(self, params, client):
        session = super()._session(params, client)
        answer = session.answer

        def answered(stage, data):
            sent = answer(stage, data)
            return b"junk" if (client, stage) == self.junk else sent

        session.answer = answered
        return session


@pytest.mark.parametrize(("malicious", "back"), [(True, False), (False, True)])
def test_a_wrong_message_bars_its_sender_for_the_session_in_the_malicious_model(malicious, back):
    params = malicious_params(6, threshold=4) if malicious else make_params(6, threshold=4)
    credentials = Credentials(signing_keys(params.roster)) if malicious else None
    owner = Junk(params.session, params.roster, 4, entropy=fixed_entropy(), credentials=credentials)
    owner.junk = (params.roster[0], Phase.SHARE_KEYS)
    faults = []
    owner._rounds._fault = lambda client, error: faults.append((client, str(error)))
    owner.prepare(1)
    assert params.roster[0] not in owner.candidates
    owner.junk = ()
    owner.prepare(1)
    assert (params.roster[0] in owner.candidates) == back
    assert faults


def test_a_report_ends_with_its_batch():
    server = ServerSession(TEN.batch, barred=set())
    assert server._reports == {}
    run = Run(TEN, Phase.SHARE_KEYS)
    report = BundleReport(messages.encode_set((0, 1, 2, 3), TEN.roster))
    run.server.receive(9, run.clients[9]._party.wrap(run.server.keys.off1, report))
    assert run.server.candidates == tuple(range(9))
    assert run.server._barred == set()
    request = next(iter(run.server.begin_step(run.task).values()))
    assert messages.decode(request, StepRequest, TEN.batch).lost == ()  # 9 is in none of them


def test_bundles_are_delivered_before_the_first_step_in_the_malicious_model():
    stages = []
    owner = BatchSession(
        TEN.session, TEN.roster, 7, entropy=fixed_entropy(),
        credentials=Credentials(signing_keys(TEN.roster)),
    )  # fmt: skip
    real = owner._asking

    def asking(*given):
        ask = real(*given)

        def asked(parts):
            stages.append([part.stage for part in parts if part.messages])
            return ask(parts)

        return asked

    owner._asking = asking
    owner.prepare(1)
    owner.step(make_inputs(TEN), TEN.task)
    assert stages[2:] == [
        [OPEN_BUNDLES], [Phase.MASKED_INPUT], [Phase.CONSISTENCY], [Phase.UNMASKING],
    ]  # fmt: skip
