"""Sessions on the ring: exact sums, a graph nobody chooses, and neighbourhoods that hold."""

import contextlib
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_helpers import (
    Run,
    fixed_entropy,
    make_inputs,
    make_params,
    malicious_params,
    plain_sum,
)

from protocols import context, messages
from protocols.audit import LyingServer
from protocols.client.durable import DurableClient
from protocols.client.session import ClientSession
from protocols.client.states import Party
from protocols.driver import BatchSession, DropSchedule, run_aggregation
from protocols.errors import (
    ConfigError,
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    PolicyError,
    RemoteProtocolError,
)
from protocols.graph import Graph, complete
from protocols.graph_parameters import ring_parameters
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    BundleReport,
    Nonce,
    NonceCommitments,
    RingAdvertisement,
    RingDirectory,
    StepRequest,
    SurvivorSet,
)
from protocols.params import BatchParams, Ring
from protocols.phases import Phase, round_phases
from protocols.policy import Policy
from protocols.seeds import Kind
from protocols.server.session import ServerSession

ROUNDS = round_phases("semi-honest", ring=True)
ME = 13
# Clients 10, 13, ... 34; the fixed entropy decides the ring.
PARAMS = make_params(9, ("g", 9, 1), threshold=5, ring=Ring(4, 2))
ROSTER = PARAMS.roster


def one_hot(params) -> dict[int, dict[str, np.ndarray]]:
    """Inputs whose sum names who is in it, and how often."""
    rows = np.eye(params.n, dtype=np.uint32)
    return {u: {"g": row} for u, row in zip(params.roster, rows, strict=True)}


def names(total, params) -> list[int]:
    assert int(total.max()) <= 1
    return [u for u, count in zip(params.roster, total, strict=True) if count]


def neighbours_by_hand(params, off1: bytes, members) -> dict[int, set[int]]:
    """SPEC 1.4 once more: who is at most k/2 places away."""
    order = sorted(members, key=lambda u: context.digest("ring", off1, context.u64(u)))
    n, k = len(order), params.ring.degree
    places = {u: place for place, u in enumerate(order)}

    def near(u, v):
        distance = abs(places[u] - places[v])
        return u != v and (n <= k + 1 or min(distance, n - distance) <= k // 2)

    return {u: {v for v in order if near(u, v)} for u in order}


def bitmap(*members: int) -> bytes:
    return messages.encode_set(members, ROSTER)


# Sums ------------------------------------------------------------------------------------------


@st.composite
def ring_cases(draw):
    n = draw(st.integers(4, 9))
    k = draw(st.sampled_from([*range(2, n - 1, 2), n - 1]))
    ring = Ring(k, draw(st.integers(2, k)))
    params = make_params(n, ("g", n, 1), threshold=draw(st.integers(n // 2 + 1, n)), ring=ring)
    dropping = draw(st.sets(st.sampled_from(params.roster), max_size=draw(st.integers(0, 4))))
    return params, {u: draw(st.sampled_from(ROUNDS)) for u in sorted(dropping)}


def core(members: set[int], near: dict[int, set[int]], least: int) -> set[int]:
    while weak := {u for u in members if len(near[u] & members) < least}:
        members = members - weak
    return members


@given(ring_cases())
def test_exact_sum_of_the_survivors_or_no_sum(case):
    """Against a model of who is where, the graph computed by hand."""
    params, drops = case
    run, least = Run(params), params.ring.threshold
    run.inputs = one_hot(params)
    waiting = set(params.roster)
    for phase in ROUNDS:
        if phase == Phase.MASKED_INPUT:
            off1 = run.server.keys.off1
            near = neighbours_by_hand(params, off1, run.drawn)
            waiting = active = core(waiting, near, least)
            if len(active) < params.threshold:
                with pytest.raises(NotEnoughSurvivors):
                    run.begin()
                return
        silent = {u for u in waiting if drops.get(u) == phase}
        waiting = waiting - silent
        short = len(waiting) < params.threshold
        if phase == Phase.DRAW_GRAPH:
            run.drawn = waiting
            short |= len(waiting) <= least
        if phase in {Phase.MASKED_INPUT, Phase.UNMASKING}:
            short |= any(len(near[u] & waiting) < least for u in active)
        if short:
            with pytest.raises(NotEnoughSurvivors) as caught:
                run.round(phase, frozenset(silent))
            assert caught.value.phase == phase
            with pytest.raises(LocalProtocolError, match="no result"):
                _ = run.server.result
            return
        run.round(phase, frozenset(silent))
        if phase == Phase.MASKED_INPUT:
            survivors = sorted(waiting)
    assert run.server.result.survivors == tuple(survivors)
    assert names(run.server.result.totals["g"], params) == survivors


@pytest.mark.parametrize("phase", ROUNDS)
def test_every_single_client_may_drop_in_every_round(phase):
    params = make_params(9, ("g", 9, 3), ("w", 2, 16), threshold=5, ring=Ring(4, 3))
    inputs = make_inputs(params)
    for u in params.roster:
        result = run_aggregation(inputs, params, drops=DropSchedule({u: phase}))
        gone = set() if phase == Phase.UNMASKING else {u}
        assert set(result.survivors) == set(params.roster) - gone
        totals = {name: total.tolist() for name, total in result.totals.items()}
        assert totals == plain_sum(inputs, result.survivors, params)


@settings(max_examples=30)
@given(st.integers(4, 8), st.data())
def test_a_ring_of_all_others_gives_the_sum_of_the_complete_graph(n, data):
    phases = st.sampled_from([phase for phase in ROUNDS if phase != Phase.DRAW_GRAPH])
    roster = make_params(n).roster
    drops = data.draw(st.dictionaries(st.sampled_from(roster), phases, max_size=n // 2))
    # With t holders besides itself a client needs one more to stay than on the complete graph.
    threshold = n // 2 + 1
    ring = Ring(n - 1, threshold - 1)
    results = []
    for changes in ({}, {"ring": ring}):
        params = make_params(n, ("g", 5, 3), threshold=threshold, **changes)
        try:
            found = run_aggregation(make_inputs(params), params, drops=DropSchedule(drops))
        except NotEnoughSurvivors as error:
            results.append(error.phase)
        else:
            results.append((found.survivors, found.totals["g"].tolist()))
    assert results[0] == results[1]


def test_steps_of_a_batch_with_clients_that_come_back():
    params = make_params(12, ("g", 12, 1), threshold=7, ring=Ring(6, 3))
    owner = BatchSession(params.session, params.roster, 7, ring=params.ring)
    owner.prepare(3)
    drops = [{}, {10: Phase.MASKED_INPUT, 16: Phase.UNMASKING}, {19: Phase.MASKED_INPUT}]
    for step, dropping in enumerate(drops):
        task = make_params(12, ("g", 12, 1), step=step).task
        result = owner.step(one_hot(params), task, DropSchedule(dropping))
        gone = {u for u, phase in dropping.items() if phase == Phase.MASKED_INPUT}
        survivors = [u for u in params.roster if u not in gone]
        assert names(result.totals["g"], params) == survivors == list(result.survivors)
    assert owner.round_trips == 3 + 2 * 3


@pytest.mark.parametrize("silent", [{}, {10: Phase.UNMASKING}, {10: Phase.MASKED_INPUT}])
def test_the_next_batch_is_made_on_the_way_with_one_round_trip_of_its_own(silent):
    owner = BatchSession(PARAMS.session, ROSTER, 5, ring=PARAMS.ring)
    owner.prepare(1)
    assert owner.round_trips == 3
    task = make_params(9, ("g", 9, 1), step=0).task
    owner.step(one_hot(PARAMS), task, DropSchedule(silent), renew=2)
    assert owner.round_trips == 3 + 3
    owner.prepare(2, ())
    assert owner.candidates == tuple(u for u in ROSTER if u not in silent)
    result = owner.step(one_hot(PARAMS), make_params(9, ("g", 9, 1), step=1).task)
    assert names(result.totals["g"], PARAMS) == list(owner.candidates)


# Neighbourhoods that are too small ---------------------------------------------------------------


def test_a_neighbourhood_below_its_threshold_fails_the_step_before_any_share_leaves():
    params = make_params(9, ("g", 9, 1), threshold=5, ring=Ring(2, 2))
    run = Run(params, Phase.SHARE_KEYS)
    run.begin()
    with pytest.raises(NotEnoughSurvivors, match="neighbours of client") as caught:
        run.round(Phase.MASKED_INPUT, silent=frozenset({ME}))
    near = run.server.keys.graph.neighbours(ME)
    assert (caught.value.alive, caught.value.needed) == (1, 2)
    assert caught.value.around == min(near)
    with pytest.raises(LocalProtocolError, match="no result"):
        _ = run.server.result
    with pytest.raises(LocalProtocolError, match="no round is running"):
        run.server.end_round()


def test_answers_that_leave_a_neighbourhood_below_its_threshold_give_no_sum():
    params = make_params(9, ("g", 9, 1), threshold=5, ring=Ring(2, 2))
    run = Run(params, Phase.MASKED_INPUT)
    with pytest.raises(NotEnoughSurvivors) as caught:
        run.round(Phase.UNMASKING, silent=frozenset({ME}))
    assert caught.value.phase == Phase.UNMASKING
    with pytest.raises(LocalProtocolError, match="no result"):
        _ = run.server.result


THINNED = make_params(12, ("g", 12, 1), threshold=7, ring=Ring(4, 2))


def test_who_has_too_few_neighbours_is_left_out_of_the_step():
    run = Run(THINNED, Phase.DRAW_GRAPH)
    run.inputs = one_hot(THINNED)
    order = ordered(run)
    # Places 0, 2 and 3 go: place 1 has one neighbour left, all others have two or more.
    run.round(Phase.SHARE_KEYS, silent=frozenset(order[i] for i in (0, 2, 3)))
    run.round(Phase.MASKED_INPUT)
    run.round(Phase.UNMASKING)
    survivors = sorted(set(order) - set(order[:4]))
    assert run.server.candidates == tuple(survivors)
    assert names(run.server.result.totals["g"], THINNED) == survivors


def test_an_active_set_of_the_caller_is_thinned_too():
    run = Run(THINNED, Phase.SHARE_KEYS)
    order = ordered(run)
    wanted = set(order) - {order[i] for i in (0, 2, 3)}
    assert set(run.server.begin_step(run.task, wanted)) == wanted - {order[1]}


def test_one_gap_can_take_all_others_with_it():
    """With t > k/2 a gap of k/2 leaves the next client too few neighbours, and so on around."""
    run = Run(make_params(12, threshold=7, ring=Ring(4, 3)), Phase.DRAW_GRAPH)
    run.round(Phase.SHARE_KEYS, silent=frozenset(ordered(run)[:2]))
    with pytest.raises(NotEnoughSurvivors) as caught:
        run.begin()
    assert (caught.value.alive, caught.value.needed) == (0, 7)
    assert run.server.keys_left == 1


def test_too_few_for_any_neighbourhood_fail_the_draw():
    params = make_params(9, threshold=5, ring=Ring(8, 6))
    run = Run(params, Phase.ADVERTISE_KEYS)
    with pytest.raises(NotEnoughSurvivors) as caught:
        run.round(Phase.DRAW_GRAPH, silent=frozenset(params.roster[:3]))
    assert (caught.value.phase, caught.value.alive, caught.value.needed) == ("draw_graph", 6, 7)


def ordered(run: Run) -> list[int]:
    state = run.server._state
    off1 = run.server.keys.off1 if run.server._keys else state.off1
    members = run.params.roster
    return sorted(members, key=lambda u: context.digest("ring", off1, context.u64(u)))


# Nobody alone chooses the order ------------------------------------------------------------------


def graphs_of(count: int, **changes) -> list[dict[int, tuple[int, ...]]]:
    found = []
    for batch in range(count):
        run = Run(make_params(9, step=batch, threshold=5, ring=Ring(4, 2), **changes))
        run.round(Phase.ADVERTISE_KEYS)
        run.round(Phase.DRAW_GRAPH)
        found.append({u: run.server._state.graph.neighbours(u) for u in ROSTER})
    return found


def test_every_batch_has_a_ring_of_its_own():
    """Even with the same entropy, since off0 holds the batch number."""
    graphs = graphs_of(6)
    assert all(a != b for i, a in enumerate(graphs) for b in graphs[:i])


def test_the_order_depends_on_every_nonce_and_every_commitment():
    off0 = context.offline(PARAMS.batch)
    nonces = {u: bytes([u]) * 32 for u in ROSTER}
    commitments = {u: context.nonce_commitment(off0, u, nonce) for u, nonce in nonces.items()}
    seen = {context.drawn(off0, commitments, nonces)}
    for u in ROSTER:
        other = {**nonces, u: bytes(32)}
        shown = {**commitments, u: context.nonce_commitment(off0, u, other[u])}
        seen |= {context.drawn(off0, shown, other), context.drawn(off0, commitments, other)}
        seen |= {context.drawn(off0, shown, {v: x for v, x in nonces.items() if v != u})}
        seen |= {context.drawn(off0, commitments, {v: x for v, x in nonces.items() if v != u})}
    assert len(seen) == 1 + 4 * len(ROSTER)
    assert len({context.nonce_commitment(o, u, n) for o in (b"a", b"b") for u in (1, 2)
                for n in (b"x", b"y")}) == 8  # fmt: skip


def test_one_other_nonce_gives_another_graph():
    graphs = set()
    for changed in (None, *ROSTER):
        run = Run(PARAMS)
        run.clients = {
            u: ClientSession(PARAMS.batch, u, fixed_entropy(b"%d %d" % (u, u == changed)))
            for u in ROSTER
        }
        run.round(Phase.ADVERTISE_KEYS)
        run.round(Phase.DRAW_GRAPH)
        graphs.add(tuple(run.server._state.graph.neighbours(u) for u in ROSTER))
    assert len(graphs) == 1 + len(ROSTER)


def test_a_nonce_that_was_not_committed_to_is_refused_by_the_server():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    with pytest.raises(RemoteProtocolError, match="committed to") as caught:
        run.server.receive(ME, messages.encode(Nonce(b"x" * 32)))
    assert (caught.value.peer, caught.value.phase) == (ME, Phase.DRAW_GRAPH)
    run.replies.pop(ME)
    for phase in ROUNDS[1:]:
        run.round(phase)
    assert run.server.result.survivors == tuple(u for u in ROSTER if u != ME)


# What clients refuse -----------------------------------------------------------------------------


def refused(run: Run, phase: Phase, message: messages.Message, match: str) -> None:
    """The client refuses the message at the named check, and gives no answer afterwards."""
    good, run.replies[ME] = run.replies[ME], messages.encode(message)
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        run.answer(ME, phase)
    assert (caught.value.peer, caught.value.phase) == (None, phase)
    run.replies[ME] = good
    with pytest.raises((LocalProtocolError, RemoteProtocolError)):
        run.answer(ME, phase)


def set_item(items: tuple, index: int, value) -> tuple:
    return (*items[:index], value, *items[index + 1 :])


@pytest.mark.parametrize(
    ("members", "changed", "match"),
    [
        (ROSTER[:4], {}, "fewer"),
        (ROSTER, {ROSTER[-1]: None}, "numbers"),
        (ROSTER, {ME: b"x" * 32}, "own"),
        (tuple(u for u in ROSTER if u != ME), {}, "own"),
    ],
    ids=["few", "numbers", "changed", "missing"],
)
def test_bad_commitments_are_refused(members, changed, match):
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    good = messages.decode(run.replies[ME], NonceCommitments, PARAMS.batch)
    listed = dict(zip(ROSTER, good.commitments, strict=True)) | changed
    sent = tuple(listed[u] for u in members if listed[u] is not None)
    refused(run, Phase.DRAW_GRAPH, NonceCommitments(bitmap(*members), sent), match)


class Directory:
    """The ring directory of ME, and ways to change it."""

    def __init__(self) -> None:
        self.run = Run(PARAMS, Phase.DRAW_GRAPH)
        self.good = messages.decode(self.run.replies[ME], RingDirectory, PARAMS.batch)
        self.near = self.run.server._state.graph.neighbours(ME)
        self.far = next(u for u in ROSTER if u != ME and u not in self.near)

    def sent(self, u: int) -> bytes:
        return self.run.clients[u]._state.own.sent

    def keys(self, index: int) -> RingAdvertisement:
        return messages.decode(self.good.advertisements[index], RingAdvertisement, PARAMS.batch)

    def with_nonce(self, u: int, nonce: bytes) -> RingDirectory:
        nonces = set_item(self.good.nonces, ROSTER.index(u), nonce)
        return msgspec.structs.replace(self.good, nonces=nonces)

    def with_keys(self, index: int, **fields) -> RingDirectory:
        changed = msgspec.structs.replace(self.keys(index), **fields)
        return self.with_bytes(index, messages.encode(changed))

    def with_bytes(self, index: int, data: bytes) -> RingDirectory:
        advertisements = set_item(self.good.advertisements, index, data)
        return msgspec.structs.replace(self.good, advertisements=advertisements)

    def without(self, *gone: int) -> RingDirectory:
        left = [u for u in ROSTER if u not in gone]
        nonces = tuple(x for u, x in zip(ROSTER, self.good.nonces, strict=True) if u in left)
        return RingDirectory(bitmap(*left), nonces, self.good.advertisements)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.without(*ROSTER[-5:]), "fewer nonces"),
        (lambda d: msgspec.structs.replace(d.good, nonces=d.good.nonces[:-1]), "numbers of nonces"),
        (lambda d: d.without(ME), "own nonce missing"),
        (lambda d: d.with_nonce(ME, b"x" * 32), "nobody committed"),
        (lambda d: d.with_nonce(d.near[0], b"x" * 32), "nobody committed"),
        (lambda d: d.with_nonce(d.far, b"x" * 32), "nobody committed"),
        (lambda d: d.with_nonce(d.far, d.good.nonces[ROSTER.index(ME)]), "nobody committed"),
        (lambda d: d.without(d.near[0]), "another client"),
        (lambda d: msgspec.structs.replace(d.good, advertisements=()), "of neighbours differ"),
        (lambda d: d.with_bytes(0, d.sent(d.far)), "another client"),
        (lambda d: d.with_bytes(0, d.good.advertisements[1]), "another client"),
        (lambda d: d.with_keys(0, nonce_commitment=b"x" * 32), "another client"),
        (lambda d: d.with_keys(0, mask_keys=()), "number of mask keys"),
        (lambda d: d.with_keys(0, channel_key=d.keys(1).channel_key), "repeat"),
        (lambda d: d.with_keys(0, channel_key=d.keys(0).mask_keys[0]), "repeat"),
    ],
)
def test_bad_ring_directories_are_refused(change, match):
    directory = Directory()
    refused(directory.run, Phase.SHARE_KEYS, change(directory), match)


def test_a_policy_counts_who_is_on_the_ring():
    for least, error in ((8, None), (9, PolicyError)):
        run = Run(PARAMS)
        policy = Policy(malicious=False, min_honest=1, min_clients=least)
        run.clients[ME] = ClientSession(PARAMS.batch, ME, fixed_entropy(b"me"), policy=policy)
        run.round(Phase.ADVERTISE_KEYS)
        run.round(Phase.DRAW_GRAPH, silent=frozenset({34}))
        with pytest.raises(error) if error else contextlib.nullcontext():
            run.answer(ME, Phase.SHARE_KEYS)


def test_a_key_of_the_client_itself_under_another_name_is_refused():
    directory = Directory()
    own = messages.decode(directory.sent(ME), RingAdvertisement, PARAMS.batch)
    message = directory.with_keys(0, channel_key=own.channel_key)
    refused(directory.run, Phase.SHARE_KEYS, message, "repeat")


def test_who_joins_after_the_commitments_is_refused():
    """U1 must be within C."""
    run = Run(PARAMS)
    run.round(Phase.ADVERTISE_KEYS, silent=frozenset({34}))
    run.round(Phase.DRAW_GRAPH)
    good = messages.decode(run.replies[ME], RingDirectory, PARAMS.batch)
    message = RingDirectory(bitmap(*ROSTER), (*good.nonces, b"x" * 32), good.advertisements)
    refused(run, Phase.SHARE_KEYS, message, "nobody committed")


@pytest.mark.parametrize("kind", ["plain", "junk"])
def test_a_neighbours_advertisement_must_be_one_of_the_ring(kind):
    directory = Directory()
    keys = directory.keys(0)
    plain = Advertisement(keys.channel_key, keys.mask_keys, keys.commitment)
    data = messages.encode(plain) if kind == "plain" else b"junk"
    directory.run.replies[ME] = messages.encode(directory.with_bytes(0, data))
    with pytest.raises(DecodeError):
        directory.run.answer(ME, Phase.SHARE_KEYS)


def test_changed_keys_of_a_neighbour_make_both_bundles_fail_to_open():
    for fields in ({"mask_keys": (b"x" * 32,)}, {"commitment": b"x" * 32}):
        directory = Directory()
        run, peer = directory.run, directory.near[0]
        run.replies[ME] = messages.encode(directory.with_keys(0, **fields))
        run.round(Phase.SHARE_KEYS)
        reports = {u: run.clients[u].open_bundles(run.replies[u]) for u in ROSTER}
        accused = {u: r and messages.decode(r, BundleReport, PARAMS.batch).unopened
                   for u, r in reports.items()}  # fmt: skip
        assert {u: bits for u, bits in accused.items() if bits} == {
            ME: bitmap(peer),
            peer: bitmap(ME),
        }
        for u, report in reports.items():
            if report:
                run.server.receive(u, report)
        assert run.server.candidates == ROSTER
        run.begun = True
        run.replies = run.server.begin_step(run.task)
        run.round(Phase.MASKED_INPUT)
        run.round(Phase.UNMASKING)
        totals = {k: v.tolist() for k, v in run.server.result.totals.items()}
        assert totals == plain_sum(run.inputs, ROSTER, PARAMS)


def test_bad_deliveries_are_refused():
    run = Run(PARAMS, Phase.DRAW_GRAPH)
    run.round(Phase.SHARE_KEYS)
    good = messages.decode(run.replies[ME], BundleDelivery, PARAMS.batch)
    assert len(good.bundles) == 4
    for count in (0, 3):
        message = BundleDelivery(good.sharers, good.bundles[:count])
        state = run.clients[ME]._state
        with pytest.raises(RemoteProtocolError, match="numbers of bundles"):
            run.clients[ME].open_bundles(messages.encode(message))
        run.clients[ME]._state = state


def test_a_sharer_that_is_not_on_the_ring_is_refused():
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    run.round(Phase.DRAW_GRAPH, silent=frozenset({34}))
    run.round(Phase.SHARE_KEYS)
    good = messages.decode(run.replies[ME], BundleDelivery, PARAMS.batch)
    with pytest.raises(RemoteProtocolError, match="advertised no keys"):
        run.clients[ME].open_bundles(messages.encode(BundleDelivery(bitmap(*ROSTER), good.bundles)))


def test_what_is_about_neighbours_has_at_most_k_entries():
    seen = {}
    run_aggregation(
        make_inputs(PARAMS),
        PARAMS,
        tap=lambda phase, direction, u, data: seen.setdefault((phase, direction), data),
    )
    kinds = {
        (Phase.DRAW_GRAPH, "down"): RingDirectory,
        (Phase.SHARE_KEYS, "up"): messages.ShareBundles,
        (Phase.SHARE_KEYS, "down"): BundleDelivery,
        (Phase.UNMASKING, "up"): messages.UnmaskShares,
    }
    for place, kind in kinds.items():
        message = messages.decode(seen[place], kind, PARAMS.batch)
        values = [getattr(message, name) for name in message.__struct_fields__]
        longest = max((v for v in values if isinstance(v, tuple)), key=len)
        assert len(longest) == (9 if kind is RingDirectory else 4)
        room = messages.max_size(kind, PARAMS.batch) - len(seen[place])
        assert 0 <= room < (400 if kind is RingDirectory else 60)


def in_step() -> tuple[Run, tuple[int, ...]]:
    """A run with its step begun, and the neighbours of ME, of whom two must stay."""
    run = Run(PARAMS, Phase.SHARE_KEYS)
    run.begin()
    return run, run.server.keys.graph.neighbours(ME)


def test_an_active_set_with_too_few_neighbours_is_refused():
    run, near = in_step()
    few = [u for u in ROSTER if u not in near[:3]]
    assert len(few) >= PARAMS.threshold
    refused(run, Phase.MASKED_INPUT, StepRequest(0, bitmap(*few)), "too few active neighbours")
    run, near = in_step()
    enough = [u for u in ROSTER if u not in near[:2]]
    run.replies[ME] = messages.encode(StepRequest(0, bitmap(*enough)))
    assert run.answer(ME, Phase.MASKED_INPUT)


@pytest.mark.parametrize("neighbour", [True, False])
def test_an_active_client_that_never_shared_is_refused(neighbour):
    run = Run(PARAMS, Phase.DRAW_GRAPH)
    near = run.server._state.graph.neighbours(ME)
    absent = next(u for u in ROSTER if u != ME and (u in near) == neighbour)
    run.round(Phase.SHARE_KEYS, silent=frozenset({absent}))
    run.begin()
    refused(run, Phase.MASKED_INPUT, StepRequest(0, bitmap(*ROSTER)), "never opened")


def test_a_survivor_set_with_too_few_neighbours_is_refused():
    run, near = in_step()
    run.round(Phase.MASKED_INPUT)
    few = [u for u in ROSTER if u not in near[:3]]
    refused(run, Phase.UNMASKING, SurvivorSet(bitmap(*few)), "too few surviving neighbours")


def test_a_survivor_that_was_not_active_is_refused():
    run, near = in_step()
    stranger = next(u for u in ROSTER if u != ME and u not in near)
    run.replies[ME] = messages.encode(StepRequest(0, bitmap(*(u for u in ROSTER if u != stranger))))
    run.answer(ME, Phase.MASKED_INPUT)
    run.replies[ME] = messages.encode(SurvivorSet(bitmap(*ROSTER)))
    with pytest.raises(RemoteProtocolError, match="not active"):
        run.answer(ME, Phase.UNMASKING)


def test_own_input_left_out_is_refused():
    run, _ = in_step()
    run.round(Phase.MASKED_INPUT)
    others = SurvivorSet(bitmap(*(u for u in ROSTER if u != ME)))
    refused(run, Phase.UNMASKING, others, "left out")


# Who may ask for what ----------------------------------------------------------------------------


def test_a_client_answers_for_its_active_neighbours_only():
    run, near = in_step()
    gone = near[0]
    run.round(Phase.MASKED_INPUT, silent=frozenset({gone}))
    reply = run.answer(ME, Phase.UNMASKING)
    shares = messages.decode(reply, messages.UnmaskShares, PARAMS.batch)
    assert (len(shares.self_shares), len(shares.key_shares)) == (3, 1)
    wrong = msgspec.structs.replace(shares, key_shares=())
    with pytest.raises(RemoteProtocolError, match="wrong number of shares"):
        run.server.receive(ME, messages.encode(wrong))


def test_a_wrong_share_is_found_and_its_sender_named():
    run, near = in_step()
    run.round(Phase.MASKED_INPUT, silent=frozenset({near[0]}))
    for u in run.replies:
        shares = messages.decode(run.answer(u, Phase.UNMASKING), messages.UnmaskShares, run.batch)
        if u == min(run.replies):  # the smallest x is always tried first
            bad = tuple(bytes(31) + bytes([i]) for i, _ in enumerate(shares.self_shares))
            shares = msgspec.structs.replace(shares, self_shares=bad)
        run.server.receive(u, messages.encode(shares))
    run.server.end_round()
    assert run.server.result.wrong == {min(run.replies)}
    expected = plain_sum(run.inputs, run.server.result.survivors, PARAMS)["g"]
    assert run.server.result.totals["g"].tolist() == expected


def test_a_report_on_a_client_that_is_no_neighbour_is_refused():
    run = Run(PARAMS, Phase.SHARE_KEYS)
    stranger = next(u for u in ROSTER if u != ME and u not in run.server.keys.graph.neighbours(ME))
    with pytest.raises(RemoteProtocolError, match="sent no bundle"):
        run.server.receive(ME, messages.encode(BundleReport(bitmap(stranger))))


def test_steps_of_the_other_graph_are_refused():
    plain = make_params(9, threshold=5)
    for params, other in ((PARAMS, plain), (plain, PARAMS)):
        upload = ClientSession(other.batch, ME, fixed_entropy()).advertise_keys()
        with pytest.raises(DecodeError):
            ServerSession(params.batch).receive(ME, upload)
    run = Run(plain, Phase.ADVERTISE_KEYS)
    with pytest.raises(LocalProtocolError, match="complete graph"):
        run.answer(ME, Phase.DRAW_GRAPH)
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    with pytest.raises(LocalProtocolError, match="Drawn"):
        run.answer(ME, Phase.SHARE_KEYS)
    run = Run(PARAMS, Phase.ADVERTISE_KEYS)
    with pytest.raises(RemoteProtocolError, match="later round"):
        run.server.receive(ME, messages.encode(messages.ShareBundles((), ())))
    run = Run(PARAMS, Phase.DRAW_GRAPH)
    assert run.server.receive(ME, messages.encode(Nonce(bytes(32)))) is False


def test_a_durable_client_shows_one_nonce_once_and_survives_restarts():
    parties = {u: Party(PARAMS.batch, u) for u in ROSTER}
    entropy = fixed_entropy()
    clients = {u: DurableClient(party, entropy) for u, party in parties.items()}
    server = ServerSession(PARAMS.batch)
    records = {}

    def round_of(step, waiting):
        for u in waiting:
            reply = step(clients[u], waiting[u])
            records[u] = reply.record
            assert step(clients[u], waiting[u]).message == reply.message
            server.receive(u, reply.message)
            clients[u] = DurableClient(parties[u], entropy, records[u])
        return dict(server.end_round())

    listed = round_of(lambda c, _: c.advertise_keys(), dict.fromkeys(ROSTER, b""))
    directories = round_of(lambda c, data: c.draw_graph(data), listed)
    good = messages.decode(listed[ME], NonceCommitments, PARAMS.batch)
    other = NonceCommitments(good.members, set_item(good.commitments, 0, b"x" * 32))
    with pytest.raises(RemoteProtocolError, match="another request"):
        clients[ME].draw_graph(messages.encode(other))
    deliveries = round_of(lambda c, data: c.share_keys(data), directories)
    for u, delivery in deliveries.items():
        assert clients[u].open_bundles(delivery).message == b""


# Parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ring", "match"),
    [((9, 3), "no neighbourhoods"), ((3, 2), "no neighbourhoods"), ((5, 2), "no neighbourhoods")],
)
def test_rings_that_do_not_exist_are_refused(ring, match):
    with pytest.raises(ConfigError, match=match):
        make_params(9, ring=Ring(*ring)).batch  # noqa: B018 - the batch is what is checked


@pytest.mark.parametrize("ring", [(4, 1), (4, 5), (1, 1), (0, 0), (2**14, 2)])
def test_thresholds_outside_the_neighbourhood_are_refused(ring):
    with pytest.raises(ConfigError):
        Ring(*ring)


def test_no_ring_in_the_malicious_model():
    with pytest.raises(ConfigError, match="malicious"):
        malicious_params(9, ring=Ring(4, 2))


def test_the_ring_of_the_published_parameters_runs():
    found = ring_parameters(30, corrupt=0.1, dropouts=0.1, sigma=10, eta=10)
    assert found.ring == Ring(found.k, found.t)
    params = make_params(30, ("g", 30, 1), ring=found.ring)
    drops = DropSchedule(dict.fromkeys(params.roster[::15], Phase.MASKED_INPUT))
    result = run_aggregation(one_hot(params), params, drops=drops)
    assert names(result.totals["g"], params) == [u for u in params.roster if u not in drops.drops]


@pytest.mark.parametrize("change", [None, Ring(6, 2), Ring(4, 3)])
def test_the_offline_context_binds_the_ring(change):
    batch = PARAMS.batch
    assert context.offline(replace(batch, ring=change)) != context.offline(batch)


def test_edges_bind_both_ends():
    ends = {10: b"a", 13: b"b"}
    variants = [ends, {10: b"b", 13: b"a"}, {10: b"a", 16: b"b"}, {10: b"x", 13: b"b"}]
    values = {context.edge(off1, e) for off1 in (b"o", b"p") for e in variants}
    assert len(values) == 2 * len(variants)
    assert context.edge(b"o", {13: b"b", 10: b"a"}) == context.edge(b"o", ends)


def test_the_complete_graph_and_the_ring_answer_the_same_questions():
    whole = Graph.of(make_params(5).batch, (10, 13, 16), b"")
    assert whole.neighbours(13) == complete(13, (10, 13, 16)) == (10, 16)
    assert whole.held(13, (13, 16)) == (13, 16)
    assert whole.weakest((10,), frozenset({10, 13})) == (2, None)
    assert whole.stable((10,)) == (10,)
    ring = Graph.of(make_params(5, ring=Ring(2, 2)).batch, (10, 13, 16), b"")
    assert ring.neighbours(13) == (10, 16)
    assert ring.held(13, (13, 16)) == (16,)
    assert ring.weakest((10, 13), frozenset({10, 13})) == (1, 10)
    assert ring.stable((10, 13)) == ()


def test_rounds_without_a_ring_are_as_before():
    assert Phase.DRAW_GRAPH not in round_phases("semi-honest") + round_phases("malicious")
    assert [*round_phases("semi-honest", ring=True)] == [
        "advertise_keys", "draw_graph", "share_keys", "masked_input", "unmasking",
    ]  # fmt: skip


def test_downloads_grow_by_64_bytes_a_client_and_by_the_neighbours():
    """What a client gets before the step: two lists of 32 bytes, and its neighbourhood."""
    sizes = {}
    for n in (20, 60):
        params = make_params(n, ring=Ring(4, 2))
        found = run_aggregation(make_inputs(params), params).bytes
        offline = (Phase.ADVERTISE_KEYS, Phase.DRAW_GRAPH, Phase.SHARE_KEYS)
        sizes[n] = max(sum(found[p]["down"][u] for p in offline) for u in params.roster)
    assert sizes[60] - sizes[20] <= 40 * (2 * 34 + 3 / 8) + 8
    assert sizes[20] <= 20 * 69 + 4 * (150 + 2 + 80 + 2) + 30


# The attacker ------------------------------------------------------------------------------------


def lying_on(params) -> LyingServer:
    batch = BatchParams(
        session=bytes(32),
        batch=1,
        steps=1,
        roster=params.roster,
        threshold=params.threshold,
        ring=params.ring,
    )
    return LyingServer({u: Party(batch, u) for u in batch.roster}, fixed_entropy())


def graph_of(server: LyingServer) -> Graph:
    return Graph.of(server.batch, server.batch.roster, server.attacker._views[ME].off1)


def played(server: LyingServer, params, gone=()) -> None:
    """One step without lies."""
    request = StepRequest(0, messages.encode_set(params.roster, params.roster))
    inputs, alive = one_hot(params), [u for u in params.roster if u not in gone]
    for u in alive:
        assert server.request(u, request, params.task, inputs[u])
    for u in alive:
        assert server.survivors(u, alive)


ATTACKED = make_params(9, ("g", 9, 1), threshold=5, ring=Ring(4, 3))


@settings(max_examples=30)
@given(st.data())
def test_below_t_corrupt_neighbours_nothing_but_the_sum_opens(data):
    """E1 and E2 of SPEC 8.7, checked on the graph; then the attacker finds one sum and no other."""
    server = lying_on(ATTACKED)
    graph = graph_of(server)
    roster, near = ATTACKED.roster, {u: set(graph.neighbours(u)) for u in ATTACKED.roster}
    corrupt = data.draw(st.sets(st.sampled_from(roster), max_size=4))
    gone = data.draw(st.sets(st.sampled_from(roster), max_size=1))
    played_by = [u for u in roster if u not in gone]
    for u in sorted(corrupt):
        server.attacker.corrupt(u, server.clients[u].state)
    played(server, ATTACKED, gone)
    exposed = {u for u in roster if u not in corrupt and len(near[u] & corrupt) >= 3}
    honest = set(played_by) - corrupt
    parts = connected(honest, near)
    found = {frozenset(o.members & honest) for o in server.attacker.opened()} - {frozenset()}
    if exposed:
        assert {frozenset({u}) for u in exposed & honest} <= found
        return
    assert found == set(parts)
    for opened in server.attacker.opened():
        assert names(opened.totals["g"], ATTACKED) == sorted(opened.members)


def connected(members: set[int], near: dict[int, set[int]]) -> list[frozenset[int]]:
    left, parts = set(members), []
    while left:
        part, todo = set(), {left.pop()}
        while todo:
            u = todo.pop()
            part.add(u)
            todo |= near[u] & left
            left -= near[u]
        parts.append(frozenset(part))
    return parts


def test_t_corrupt_neighbours_open_an_input():
    server = lying_on(ATTACKED)
    for u in graph_of(server).neighbours(ME)[:3]:
        server.attacker.corrupt(u, server.clients[u].state)
    played(server, ATTACKED)
    opened = server.attacker.opened()
    assert [o.members for o in opened if ME in o.members] == [{ME}]


@settings(max_examples=40)
@given(st.data())
def test_lies_about_who_survived_never_open_both_seeds_of_a_client(data):
    """2t > k + c with t = 3, k = 4, c = 1: what `RingModel.EQUIVOCATING` counts on."""
    server, roster = lying_on(ATTACKED), ATTACKED.roster
    corrupt = data.draw(st.sampled_from(roster))
    server.attacker.corrupt(corrupt, server.clients[corrupt].state)
    request = StepRequest(0, messages.encode_set(roster, roster))
    for u in roster:
        server.request(u, request, ATTACKED.task, one_hot(ATTACKED)[u])
    victim = data.draw(st.sampled_from(roster))
    for u in roster:
        gone = data.draw(st.sets(st.sampled_from([v for v in roster if v != u]), max_size=2))
        lie = gone | ({victim} - {u} if data.draw(st.booleans()) else set())
        server.survivors(u, set(roster) - lie)
    attacker = server.attacker
    attacker.opened()
    assert attacker.breaches == []
    for u in set(roster) - {corrupt}:
        key_known = attacker._views[u].mask_keys[u][0] in attacker._pairs
        assert not (key_known and (u, 0, Kind.SELF_MASK) in attacker._seeds)


def test_the_ring_does_not_stop_a_server_that_chooses_who_drops_out():
    """SPEC 8.7: k lies cut an arc off, and two sums come out. No client can tell."""
    params = make_params(12, ("g", 12, 1), threshold=7, ring=Ring(4, 2))
    server = lying_on(params)
    off1 = server.attacker._views[ME].off1
    order = sorted(params.roster, key=lambda u: context.digest("ring", off1, context.u64(u)))
    arc, others = set(order[2:6]), set(order[8:])
    gone = set(order) - arc - others
    assert len(gone) == 4
    played(server, params, gone)
    assert {o.members for o in server.attacker.opened()} == {frozenset(arc), frozenset(others)}
