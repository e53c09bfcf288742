"""The graph that clients choose: its claim (SPEC 1.6), its numbers (SPEC 8.8), and attacks."""

import itertools
import math

import numpy as np
import pytest
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
from protocols.audit import strategies as some
from protocols.audit.chosen import ChoosingServer
from protocols.client import offline, step
from protocols.client.session import ClientSession
from protocols.client.states import Party
from protocols.driver import BatchSession, DropSchedule, run_aggregation
from protocols.errors import ConfigError, NotEnoughSurvivors, PolicyError, RemoteProtocolError
from protocols.graph import Graph, choose
from protocols.graph_parameters import chosen_parameters, log2_split
from protocols.messages import BundleDelivery, ChosenDirectory, StepRequest
from protocols.params import Chosen
from protocols.phases import Phase
from protocols.policy import Policy
from protocols.server.session import ServerSession
from protocols.signing import Credentials

GRAPH = Chosen(6, 5)
NINE = malicious_params(9, threshold=6, roster=tuple(range(9)), chosen=GRAPH)


# -- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", list(Phase))
def test_the_sum_is_exact_whenever_a_client_falls_silent(phase):
    params, inputs = NINE, make_inputs(NINE)
    result = run_aggregation(
        inputs,
        params,
        drops=DropSchedule({4: phase}),
        entropy=fixed_entropy(),
        credentials=Credentials(signing_keys(params.roster)),
    )
    totals = {name: total.tolist() for name, total in result.totals.items()}
    assert totals == plain_sum(inputs, result.survivors, params)
    gone = phase in (Phase.ADVERTISE_KEYS, Phase.DRAW_GRAPH, Phase.SHARE_KEYS, Phase.MASKED_INPUT)
    assert set(params.roster) - set(result.survivors) == ({4} if gone else set())


def test_everybody_leaves_with_whom_it_needs_and_then_no_sum_comes_out():
    params = NINE
    drops = DropSchedule(dict.fromkeys((1, 4, 7), Phase.MASKED_INPUT))
    credentials = Credentials(signing_keys(params.roster))
    with pytest.raises(NotEnoughSurvivors, match="5 needed"):
        run_aggregation(
            make_inputs(params), params, drops=drops, entropy=fixed_entropy(),
            credentials=credentials,
        )  # fmt: skip


def test_every_batch_has_other_neighbours():
    sent = []
    owner = BatchSession(
        NINE.session, NINE.roster, 6, entropy=fixed_entropy(), chosen=GRAPH,
        credentials=Credentials(signing_keys(NINE.roster)),
        tap=lambda phase, direction, u, data: sent.append((phase, direction, u, data)),
    )  # fmt: skip
    owner.prepare(1)
    owner.prepare(1)
    lists = [
        messages.decode(
            messages.decode(data, messages.Signed, NINE.batch).body,
            messages.ChosenAdvertisement,
            NINE.batch,
        ).chosen
        for phase, direction, _, data in sent
        if phase == Phase.ADVERTISE_KEYS and direction == "up"
    ]
    assert len(lists) == 18
    assert sum(a != b for a, b in zip(lists[:9], lists[9:], strict=True)) > 4


# -- who holds whose shares ----------------------------------------------------------------------


def lists_of(n: int, k: int, seed: int) -> dict[int, tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    others = {u: [v for v in range(n) if v != u] for u in range(n)}
    return {u: tuple(sorted(rng.permutation(near)[:k].tolist())) for u, near in others.items()}


def test_neighbours_are_symmetric_and_holders_are_whom_one_chose():
    params = malicious_params(12, roster=tuple(range(12)), chosen=Chosen(4, 3))
    lists = lists_of(12, 4, 1)
    graph = Graph.of_choices(params.batch, lists)
    everybody = tuple(range(12))
    for u, v in itertools.permutations(everybody, 2):
        assert (v in graph.neighbours(u)) == (u in graph.neighbours(v))
        assert (v in graph.neighbours(u)) == (v in lists[u] or u in lists[v])
        assert (v in graph.holders(u, everybody)) == (v in lists[u])
        assert (v in graph.held(u, everybody)) == (u in lists[v])


def test_who_has_too_few_holders_leaves_whatever_the_order():
    params = malicious_params(12, roster=tuple(range(12)), chosen=Chosen(4, 3))
    for seed in range(30):
        lists = lists_of(12, 4, seed)
        every = list(itertools.combinations(range(12), 2))
        rng = np.random.default_rng(seed)
        lost = frozenset(every[i] for i in rng.permutation(len(every))[:12])
        members = tuple(sorted(rng.permutation(12)[:10].tolist()))
        graph = Graph.of_choices(params.batch, lists).without(lost)
        expected = set(members)
        while True:
            short = {
                u
                for u in expected
                if sum(v in expected and (min(u, v), max(u, v)) not in lost for v in lists[u]) < 3
            }
            if not short:
                break
            expected -= {min(short)}
        assert set(graph.stable(members)) == expected


def test_each_client_draws_uniformly_and_alone():
    roster = tuple(range(20))
    counts = dict.fromkeys(roster, 0)
    for number in range(2000):
        chosen = choose(3, roster, 5, number.to_bytes(32, "big"))
        assert len(set(chosen)) == 5
        assert list(chosen) == sorted(chosen)
        for v in chosen:
            counts[v] += 1
    assert counts.pop(3) == 0
    expected = 2000 * 5 / 19
    deviation = math.sqrt(expected * (1 - 5 / 19))
    assert all(abs(count - expected) < 5 * deviation for count in counts.values())


# -- the numbers of SPEC 8.8 ---------------------------------------------------------------------


def split_apart(lists, corrupt, need: int) -> bool:
    """Whether (P) of SPEC 1.6 fails: by going through every set of at most half the honest."""
    honest = [u for u in lists if u not in corrupt]
    for size in range(1, len(honest) // 2 + 1):
        for group in itertools.combinations(honest, size):
            inside = {*group, *corrupt}
            if all(len(inside.intersection(lists[u])) >= need for u in group):
                return True
    return False


@pytest.mark.parametrize(("n", "bad", "k", "t"), [(8, 0, 5, 4), (9, 1, 6, 5), (9, 2, 3, 3)])
def test_the_bound_on_p_is_no_smaller_than_how_often_it_fails(n, bad, k, t):
    bound = 2 ** log2_split(n, bad, k, t)
    assert 0 < bound < 0.9  # else this test shows nothing
    tried = 400
    corrupt = set(range(bad))
    failed = sum(split_apart(lists_of(n, k, seed), corrupt, 2 * t - k) for seed in range(tried))
    slack = 4 * math.sqrt(bound * (1 - bound) / tried)
    assert failed / tried <= bound + slack
    assert failed  # and the union bound is not absurdly far away
    assert bound < 20 * failed / tried


def test_where_the_bound_is_zero_no_lists_fail():
    assert log2_split(9, 0, 6, 5) == -math.inf
    assert log2_split(9, 1, 7, 6) == -math.inf
    assert not any(split_apart(lists_of(9, 6, seed), set(), 4) for seed in range(20))


@pytest.mark.parametrize(("n", "share", "k", "t"), [(100, 0.05, 27, 22), (1000, 0.05, 119, 93)])
def test_the_parameters_hold_their_conditions_and_no_smaller_ones_do(n, share, k, t):
    found = chosen_parameters(n, corrupt=share, dropouts=share, steps=8)
    assert (found.k, found.t) == (k, t)
    assert found.log2_split <= -40
    assert found.log2_stuck <= -30
    assert found.log2_flooded <= -30
    assert log2_split(n, found.corrupt, k, t - 1) > -40
    assert Chosen(k, t) == found.chosen


def test_all_corrupt_clients_may_choose_the_same_victim():
    """With 10,000 clients that decides about k: 500 of them must leave room among 3k."""
    found = chosen_parameters(10_000)
    assert 3 * found.k > found.k + found.corrupt + 5 * math.sqrt(found.k)
    assert found.log2_flooded > -33
    assert found.log2_split < -100


@pytest.mark.parametrize(
    ("corrupt", "dropouts", "why"),
    [
        (1 / 3, 0.05, "a third corrupt has no sparse graph: use the complete graph"),
        (0.3, 0.3, "no sparse graph of 100 clients bears 30 corrupt and 30 silent"),
        (0.7, 0.4, "nobody is left"),
        (-0.1, 0.0, "outside 0..1"),
    ],
)
def test_what_no_sparse_graph_bears_is_said_in_one_line(corrupt, dropouts, why):
    with pytest.raises(ConfigError, match=why) as caught:
        chosen_parameters(100, corrupt=corrupt, dropouts=dropouts)
    assert "\n" not in str(caught.value)


# -- who may take part ---------------------------------------------------------------------------


def test_a_client_counts_with_the_colluders_of_its_own_policy():
    params = malicious_params(100, chosen=Chosen(27, 22))
    key = signing_keys(params.roster)[10]
    Party(params.batch, 10, key, Policy(colluders=5))
    with pytest.raises(PolicyError, match="27 chosen, 22 needed: too few against 20"):
        Party(params.batch, 10, key, Policy(colluders=20))
    with pytest.raises(PolicyError, match="too few against 5"):
        Party(params.batch, 10, key, Policy(colluders=5, sigma=64))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"chosen": Chosen(12, 8)}, "of 12 clients none can choose 12"),
        ({"threat_model": "semi-honest", "identities": ()}, "for the malicious model"),
    ],
)
def test_batches_that_cannot_be(change, why):
    params = malicious_params(12, chosen=Chosen(10, 8))
    fields = {name: getattr(params, name) for name in params.__dataclass_fields__}
    with pytest.raises(ConfigError, match=why):
        _ = make_params(12, **{**fields, **change}).batch


@pytest.mark.parametrize(("k", "t"), [(1, 1), (4, 2), (4, 5), (6, 3)])
def test_half_of_the_chosen_are_never_enough(k, t):
    with pytest.raises(ConfigError):
        Chosen(k, t)


def test_more_than_3k_that_chose_one_are_refused_and_3k_are_not():
    params = malicious_params(12, roster=tuple(range(12)), chosen=Chosen(2, 2))
    run = flooded(params, choosers=6)
    assert run.clients[11].share_keys(run.replies[11])
    run = flooded(params, choosers=7)
    with pytest.raises(RemoteProtocolError, match="chosen by too many clients"):
        run.clients[11].share_keys(run.replies[11])


def flooded(params, choosers: int) -> Run:
    """A run up to the directories, in which some clients choose the last one."""
    run = Run.__new__(Run)
    run.params, run.batch, run.task, run.own, run.begun = (
        params,
        params.batch,
        params.task,
        {},
        False,
    )
    policy, entropy, keys = Policy(sigma=0), fixed_entropy(), signing_keys(params.roster)
    run.clients = {
        u: ClientSession(params.batch, u, entropy, identity=keys[u], policy=policy)
        for u in params.roster
    }
    for u, client in run.clients.items():
        wanted = (11, 10) if u < choosers else (9, 10)
        choose_always(client, [v for v in (*wanted, 7, 8) if v != u][:2])
    run.server = ServerSession(params.batch)
    run.replies = {}
    run.round(Phase.ADVERTISE_KEYS)
    return run


def choose_always(client: ClientSession, chosen: list[int]) -> None:
    """Leave a client's choice not to chance."""
    advertise = client.advertise_keys

    def advertised() -> bytes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(offline, "choose", lambda *_: tuple(sorted(chosen)))
            return advertise()

    client.advertise_keys = advertised


# -- the claim of SPEC 1.6 -----------------------------------------------------------------------


def lying(params, lists=None, corrupt=(), policy=None) -> ChoosingServer:
    """Real clients with given lists, or with drawn ones, and a server that may lie."""
    batch, keys = params.batch, signing_keys(params.roster)
    parties = {u: Party(batch, u, keys[u], policy or Policy()) for u in batch.roster}
    if lists is None:
        return ChoosingServer(parties, fixed_entropy(), corrupt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "choose", lambda u, *_: tuple(sorted(lists[u])))
        return ChoosingServer(parties, fixed_entropy(), corrupt)


def task(n: int, broadcast: int = 0):
    return some.make_task(some.section(some.WHO, n, 1), broadcast=broadcast)


def request(params, lost=()) -> StepRequest:
    roster = params.roster
    return StepRequest(0, messages.encode_set(roster, roster), pairs.encode(lost, roster))


def opened(server: ChoosingServer) -> list[set[int]]:
    """The clients in every sum that the attacker can compute, by the one-hot inputs in it."""
    roster = server.batch.roster
    return [set(some.named(roster, o.totals[some.WHO])) for o in server.attacker.opened()]


WEAK = malicious_params(10, threshold=6, roster=tuple(range(10)), chosen=Chosen(4, 3))


def mixed_worlds(server: ChoosingServer) -> list[set[int]]:
    """Open the sum of {0, 1, 2} alone; each of them chose the two others, 3, and one of 4, 5, 6.

    In one world these three and 3 sign that everybody survived. They have lost all others. In the
    other world 4 to 9 sign that everybody but 3 survived. So 3 is opened as dropped, and the third
    share of every self mask of {0, 1, 2} comes from the other world.
    """
    roster = server.batch.roster
    victims, dropped, others = {0, 1, 2}, 3, set(range(4, 10))
    cut = {(min(u, v), max(u, v)) for u in victims for v in others}
    for u in roster:
        here = u not in others
        message = request(WEAK, cut) if here else request(WEAK)
        server.request(u, message, task(10, broadcast=here), some.one_hot(roster, u))
    without = tuple(u for u in roster if u != dropped)
    for u in roster:
        server.survivors(u, without if u in others else roster)
    for u in roster:
        if u != dropped:
            server.proof(u, without if u in others else roster)
    return opened(server)


WEAK_LISTS = {
    0: (1, 2, 3, 4), 1: (0, 2, 3, 5), 2: (0, 1, 3, 6), 3: (0, 4, 5, 6),
    4: (3, 5, 6, 7), 5: (3, 6, 7, 8), 6: (3, 7, 8, 9), 7: (4, 5, 6, 9),
    8: (4, 5, 7, 9), 9: (4, 6, 7, 8),
}  # fmt: skip


def test_the_attack_because_of_which_p_asks_for_2t_minus_k():
    """With lists against (P) it opens three inputs of ten. Nobody there chose fewer than t ...

    so a condition with t in place of 2t - k would not have seen it. The policy refuses the graph.
    """
    need = 2 * 3 - 4
    assert split_apart(WEAK_LISTS, set(), need)
    inside = [len({0, 1, 2}.intersection(WEAK_LISTS[u])) for u in (0, 1, 2)]
    assert inside == [need] * 3  # and need < t
    server = lying(WEAK, WEAK_LISTS, policy=Policy(sigma=0))
    assert {0, 1, 2} in mixed_worlds(server)
    with pytest.raises(PolicyError, match="too few"):
        lying(WEAK, WEAK_LISTS)


def test_the_same_attack_on_lists_that_hold_p_opens_nothing():
    """The three do not choose each other any more."""
    lists = {**WEAK_LISTS, 0: (1, 3, 4, 7), 1: (2, 3, 5, 8), 2: (0, 3, 6, 9)}
    assert mixed_worlds(lying(WEAK, lists, policy=Policy(sigma=0))) == []


def test_clients_that_fall_apart_by_chance_are_summed_apart():
    """What (P) is for: two groups that chose among themselves. A policy refuses the numbers."""
    params = malicious_params(8, threshold=5, roster=tuple(range(8)), chosen=Chosen(3, 3))
    groups = {0, 1, 2, 3}, {4, 5, 6, 7}
    lists = {u: tuple(v for v in group if v != u) for group in groups for u in group}
    server = lying(params, lists, policy=Policy(sigma=0))
    for u in params.roster:
        server.request(u, request(params), task(8), some.one_hot(params.roster, u))
    for ask in (server.survivors, server.proof):
        for u in params.roster:
            ask(u, params.roster)
    assert sorted(map(sorted, opened(server))) == [sorted(group) for group in groups]


def accepts(server: ChoosingServer, u: int, message: StepRequest) -> bool:
    client = server.clients[u]
    party, state = server._parties[u], client.state
    try:
        step.mask_input(party, state, message, task(9), some.one_hot(party.batch.roster, u))
    except RemoteProtocolError as error:
        return "too few active neighbours" not in str(error)
    return True


@pytest.mark.parametrize("corrupt", [0, 1])
def test_pairs_broken_along_any_line_leave_one_side_at_most(corrupt):
    """Every cut of nine clients: the smaller side never goes on as a whole (SPEC 1.6).

    The corrupt client keeps all its pairs, so that both sides have as many holders as can be.
    """
    graph = Chosen(7, 6) if corrupt else GRAPH
    params = malicious_params(9, threshold=6, roster=tuple(range(9)), chosen=graph)
    server = lying(params, policy=Policy(colluders=corrupt))
    honest = tuple(range(9 - corrupt))
    for size in range(1, len(honest) // 2 + 1):
        for side in itertools.combinations(honest, size):
            rest = set(honest) - set(side)
            cut = {(min(u, v), max(u, v)) for u in side for v in rest}
            assert not all(accepts(server, u, request(params, cut)) for u in side), side


def test_damaged_bundles_cost_both_ends_a_mask_and_one_a_holder():
    run = Run(NINE, Phase.SHARE_KEYS)
    sender, me = next(
        (u, v) for u in NINE.roster for v in NINE.roster
        if v in run.clients[u].state.chosen and u not in run.clients[v].state.chosen
    )  # fmt: skip
    data = messages.decode(run.replies[me], BundleDelivery, NINE.batch)
    senders = [u for u in NINE.roster if me in run.clients[u].state.chosen]
    bundles = list(data.bundles)
    bundles[senders.index(sender)] = bytes(len(bundles[0]))
    run.replies[me] = messages.encode(BundleDelivery(data.sharers, tuple(bundles)))
    for phase in (Phase.MASKED_INPUT, Phase.CONSISTENCY, Phase.UNMASKING):
        if phase == Phase.CONSISTENCY:
            current = {u: run.clients[u].state.current for u in (sender, me)}
            assert len(current[sender].chosen) == 5
            assert len(current[me].chosen) == 6
            assert sender not in current[me].held
        run.round(phase)
    assert run.server.result.survivors == NINE.roster
    totals = {k: v.tolist() for k, v in run.server.result.totals.items()}
    assert totals == plain_sum(run.inputs, NINE.roster, NINE)


def test_a_client_is_opened_once_however_its_holders_are_lied_to():
    """One victim's six holders are split between "it survived" and "it dropped"."""
    victim = 0
    first = lying(NINE)
    holders = first.choices(victim)
    for count in (1, 2, 3, 5):
        server = lying(NINE)
        roster, told = NINE.roster, {}
        for u in roster:
            server.request(u, request(NINE), task(9), some.one_hot(roster, u))
        gone = set(holders[:count])
        without = tuple(u for u in roster if u != victim)
        for u in roster:
            told[u] = without if u in gone else roster
            server.survivors(u, told[u])
        for u in roster:
            server.proof(u, told[u])
        assert not server.attacker.breaches
        assert all(len(found) > 4 for found in opened(server))


def test_signatures_of_others_than_the_holders_do_not_count():
    """Vectors play single messages; here the same signatures convince one and not another."""
    run = Run(NINE, Phase.CONSISTENCY)
    proofs = {
        u: messages.decode(data, messages.ConsistencyProof, NINE.batch)
        for u, data in run.replies.items()
    }
    for u, v in itertools.permutations(NINE.roster, 2):
        state = run.clients[v].state
        mine = set(state.current.chosen)
        signers = set(messages.decode_set(proofs[u].signers, NINE.roster))
        if signers <= mine:
            step.check_proof(NINE.batch, state.current, proofs[u])
        else:
            with pytest.raises(RemoteProtocolError, match="a signer holds no shares"):
                step.check_proof(NINE.batch, state.current, proofs[u])


def test_the_record_of_a_step_keeps_the_signatures_of_all():
    """So that a client that was not asked can check them (SPEC 6.11)."""
    run = Run(NINE, Phase.UNMASKING)
    proof = run.server.result.proof
    assert messages.decode_set(proof.signers, NINE.roster) == NINE.roster


def test_a_hidden_choice_gives_no_sum_and_opens_nothing():
    """The server does not tell client 5 that 0 chose it: only 0 masks with it."""
    lists = lists_of(9, 6, 3)
    lists[0] = (1, 2, 3, 4, 5, 6)
    lists[5] = (1, 2, 3, 4, 6, 7)
    server = lying(NINE, lists)
    parties, roster = server._parties, NINE.roster
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "choose", lambda u, *_: lists[u])
        server = ChoosingServer(parties, fixed_entropy(), exchange=False)
        for u in roster:
            server.advertise(u)
    for u in roster:
        true = server.true_choices(u)
        if u == 5:
            near = messages.decode_set(true.neighbours, roster)
            kept = {v: data for v, data in zip(near, true.advertisements, strict=True) if v != 0}
            bitmap = messages.encode_set(kept, roster)
            true = ChosenDirectory(true.members, bitmap, tuple(kept.values()))
        assert server.chosen_directory(u, true)
    for u in roster:
        whole = server.true_delivery(u)
        if u == 5:
            senders = [v for v in roster if v != 5 and 5 in server.choices(v)]
            kept = [b for v, b in zip(senders, whole.bundles, strict=True) if v != 0]
            whole = BundleDelivery(whole.sharers, tuple(kept))
        assert server.deliver(u, whole) is not None
    for u in roster:
        assert server.request(u, request(NINE), task(9), some.one_hot(roster, u))
    for ask in (server.survivors, server.proof):
        for u in roster:
            ask(u, roster)
    assert opened(server) == []
