"""The recorded bytes still come out, and the independent implementation agrees with each."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import reference_implementation as reference
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gen_secagg_vectors import FOLDER, VECTORS, main, render
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_helpers import Run, fixed_entropy, make_params, rounds_of, signing_keys

from protocols import errors
from protocols.driver import BatchSession, DropSchedule
from protocols.errors import NotEnoughSurvivors
from protocols.graph_parameters import log2_split
from protocols.params import AggregationParams, Chosen, Ring, Section
from protocols.phases import Phase
from protocols.signing import Credentials

FILES = {name: json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in VECTORS}
GOOD = [name for name, vector in FILES.items() if "messages" in vector]
BAD = [(name, case) for name, vector in FILES.items() for case in vector.get("cases", [])]
BAD = [(name, case) for name, case in BAD if "error" in case]


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_are_reproduced(name):
    assert render(VECTORS[name]()) == (FOLDER / name).read_text(encoding="utf-8")


def test_the_generator_says_what_would_change(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gen_secagg_vectors.FOLDER", tmp_path)
    monkeypatch.setattr("gen_secagg_vectors.VECTORS", {"expansion.json": VECTORS["expansion.json"]})
    assert main(check=True) == 1
    assert "expansion.json is not what the code gives" in capsys.readouterr().out
    assert main(check=False) == 0
    assert main(check=True) == 0


def test_a_third_of_the_vectors_and_more_is_negative():
    assert len(BAD) >= (len(BAD) + len(GOOD) + len(FILES["expansion.json"]["cases"])) / 3
    assert all(case["name"].startswith("bad_") for _, case in BAD)
    for name in ("bad.json", "bad_malicious.json", "bad_ring.json", "bad_chosen.json"):
        names = [case["name"] for _, case in BAD if _ == name]
        assert len(set(names)) == len(names)


def test_widths_and_lengths_vary_apart_from_each_other():
    cases = FILES["expansion.json"]["cases"]
    assert {case["bits"] for case in cases} >= {2, 5, 9, 17, 26, 32}
    steps = [(FILES[name], step) for name in GOOD for step in FILES[name]["steps"]]
    shapes = {
        (reference.width_of(len(vector["roster"]), s["maximum"]), s["length"])
        for vector, step in steps
        for s in step["sections"]
    }
    widths, lengths = zip(*sorted(shapes), strict=True)
    assert set(widths) >= {3, 5, 9, 17, 26, 27}
    assert any(a > b for a, b in pairwise(lengths))
    assert any(a < b for a, b in pairwise(lengths))


# -- the independent implementation ------------------------------------------------------------


def parties(vector) -> reference.Reference:
    signing = {}
    if vector["threat_model"] == "malicious":
        signing = {u: ed25519(u) for u in vector["roster"]}
    batch = reference.Batch(
        bytes.fromhex(vector["session"]),
        vector["batch"],
        vector["M"],
        tuple(vector["roster"]),
        vector["threshold"],
        signing,
        pair_of(vector["ring"]),
        pair_of(vector.get("chosen")),
    )
    return reference.Reference(batch, fixed_entropy(bytes.fromhex(vector["seed"])))


def pair_of(graph) -> tuple[int, int] | None:
    return graph and (graph["degree"], graph["threshold"])


def ed25519(u: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(u.to_bytes(32, "big"))


def described(step) -> reference.Step:
    sections = tuple(reference.Section(**s) for s in step["sections"])
    return reference.Step(
        step["step"], step["kind"], sections, bytes.fromhex(step["broadcast_digest"])
    )


def by_client(values) -> dict[int, object]:
    return {int(u): value for u, value in values.items()}


@pytest.mark.parametrize("name", GOOD)
def test_the_reference_agrees_on_every_byte(name):
    vector = FILES[name]
    run = parties(vector)
    run.exchange_keys(by_client(vector["steps"][0]["drops"]), vector.get("changed", ()))
    for step in vector["steps"]:
        inputs, drops = by_client(step["inputs"]), by_client(step["drops"])
        assert run.run_step(described(step), inputs, drops) == step["totals"]
        assert run.survivors == step["survivors"]
        for section, total in step["totals"].items():
            columns = zip(*(inputs[u][section] for u in step["survivors"]), strict=True)
            assert total == [sum(column) for column in columns]
    assert run.sent == [
        (m["phase"], m["direction"], m["client"], bytes.fromhex(m["bytes"]))
        for m in vector["messages"]
    ]


@pytest.mark.parametrize("case", FILES["expansion.json"]["cases"], ids=lambda case: case["bits"])
def test_the_reference_expands_alike(case):
    key = bytes.fromhex(FILES["expansion.json"]["key"])
    values = reference.expand(key, reference.PRIMES[case["bits"]], case["length"])
    assert values == case["values"]


# -- negative vectors --------------------------------------------------------------------------


def str_or_name(value) -> str:
    return value if isinstance(value, str) else value["name"]


def parameters(vector) -> AggregationParams:
    step = vector["steps"][0]
    malicious = vector["threat_model"] == "malicious"
    keys = signing_keys(vector["roster"]) if malicious else {}
    return make_params(
        roster=tuple(vector["roster"]),
        threshold=vector["threshold"],
        step=step["step"],
        sections=tuple(Section(**s) for s in step["sections"]),
        threat_model=vector["threat_model"],
        identities=tuple(key.public for key in keys.values()),
        ring=vector["ring"] and Ring(*pair_of(vector["ring"])),
        chosen=Chosen(*pair_of(vector["chosen"])) if "chosen" in vector else None,
    )


# What our code says when the check that a case names fires, and no other one.
FIRED = {
    "3.11 the context": "signature is not valid",
    "3.11 the sender": "signature is not valid",
    "3.11 the signature": "signature is not valid",
    "3.6 elements below P": "not an encoding of a field element",
    "5.2 a tag that is expected": "unknown message tag|not a (Signed|ConsistencyProof)",
    "5.2 an upload whose round is to come": "message of a later round",
    "5.2 one encoding of each message": r"encoding is not canonical|unknown message tag|not a \w+$",
    "5.2 the tags of this graph": "unknown message tag",
    "5.2 uploads inside Signed": "not a Signed",
    "5.3 the size of a vector": "packed vector of wrong size",
    "5.3 unused bits are zero": "padding bits are not zero",
    "5.3 values below p": "a masked element is not in the field",
    "5.4 the size of a bitmap": "not a bitmap over the roster",
    "5.4 unused bits are zero": "not a bitmap over the roster",
    "5.5 i < k": "not a list of pairs of the roster",
    "5.5 k < n": "not a list of pairs of the roster",
    "5.5 pairs ascend": "not a list of pairs of the roster",
    "6.1 M mask keys": "wrong number of mask keys",
    "6.1 a list has k members": "list of wrong length, or of itself",
    "6.1 a list has not its sender": "list of wrong length, or of itself",
    "6.1 all keys differ": "keys repeat",
    "6.1 no key of low order": "a key has low order",
    "6.2 a bundle for every neighbour": "wrong number of bundles",
    "6.2 a list has k members": "list of wrong length, or of itself",
    "6.2 all keys differ": "keys repeat",
    "6.2 every other neighbour's list has u": "a neighbour that neither chose nor was chosen",
    "6.2 everybody that u chose is among the neighbours": "that was chosen is no neighbour",
    "6.2 list length = number of neighbours": "numbers of advertisements and of neighbours differ",
    "6.2 list length = |U1|": "numbers of advertisements and of members differ",
    "6.2 own advertisement byte for byte": "own keys missing or changed",
    "6.2 signatures of the advertisements": "signature is not valid",
    "6.2 tau of those that u chose in U1": "too few of the chosen advertised keys",
    "6.2 the commitments that were advertised": "commitments are not those advertised",
    "6.2 neighbours within U1 without u": "a neighbour advertised no keys",
    "6.2 u in U1": "own keys missing or changed",
    "6.2 |U1| >= t": "fewer keys than the threshold",
    "6.3 both ends of a lost pair in A": "a lost pair is not active",
    "6.3 holders of every member's shares in A": "leave an active client too few holders",
    "6.3 holders of own shares in A": "too few active neighbours to hold shares",
    "6.3 keys that are unspent": "keys of this step are spent or were never made",
    "6.3 u in A": "own id is not in the active set",
    "6.3 |A| >= t": "active set below the threshold",
    "6.4 holders of own shares in U3": "too few surviving neighbours to hold shares",
    "6.4 list lengths": "wrong number of shares",
    "6.4, 6.8 holders of own shares in U3": "too few surviving neighbours to hold shares",
    "6.4, 6.8 u in U3": "own masked input was left out",
    "6.4, 6.8 |U3| >= t": "fewer survivors than the threshold",
    "6.8 every signature on its own U3": "consistency: client .*: signature is not valid",
    "6.8 list length = |signers|": "numbers of signers and of signatures differ",
    "6.8 signers are holders": "a signer holds no shares of this client",
    "6.8 t signers": "fewer signatures than the threshold",
    "6.8 tau signers": "fewer signatures than the threshold",
    "6.9 a nonce that was committed to": "nonce is not what was committed to",
    "6.9 an advertisement of every neighbour": "numbers of advertisements and of neighbours differ",
    "6.9 every nonce is what was committed to": "a nonce that nobody committed to",
    "6.9 list length = |C|": "numbers of commitments and of members differ",
    "6.9 own commitment is there": "own commitment missing or changed",
    "6.9 the nonce commitment listed for the neighbour": "of another client than the neighbour",
    "6.9 |U1| >= max(t, tau + 1)": "fewer nonces than the threshold",
}


@pytest.mark.parametrize(("name", "case"), BAD, ids=str_or_name)
def test_negative_vectors_fail_where_they_must(name, case):
    params, me = parameters(FILES[name]), FILES[name]["client"]
    phase, data = Phase(case["phase"]), bytes.fromhex(case["bytes"])
    rounds = [None, *rounds_of(params)]
    run = Run(params, rounds[rounds.index(phase) - 1])
    if phase == Phase.MASKED_INPUT:
        run.begin()
    run.replies[me] = data
    with pytest.raises(getattr(errors, case["error"]), match=FIRED[case["check"]]) as caught:
        _ = run.server.receive(me, data) if case["receiver"] == "server" else run.answer(me, phase)
    assert type(caught.value).__name__ == case["error"]


@pytest.mark.parametrize(("name", "case"), BAD, ids=str_or_name)
def test_the_reference_refuses_with_the_same_error(name, case):
    vector, data = FILES[name], bytes.fromhex(case["bytes"])
    run, step = stopped_before(vector, case["phase"])
    inspector = reference.Inspector(run, described(step))
    inspect = inspector.server if case["receiver"] == "server" else inspector.client
    with pytest.raises(reference.RefusedError, match=f"^{case['error']}$"):
        inspect(case["phase"], vector["client"], data)


@pytest.mark.parametrize(
    "name", ["bad.json", "bad_malicious.json", "bad_ring.json", "bad_chosen.json"]
)
def test_the_reference_accepts_every_message_of_the_honest_run(name):
    """Else it would refuse negative ones for nothing."""
    vector = FILES[name]
    everything, step = stopped_before(vector, None)
    answers = {
        "advertise_keys": "draw_graph" if vector["ring"] else "share_keys",
        "draw_graph": "share_keys",
        "consistency": "unmasking",
    }
    checked = 0
    for phase, direction, u, data in everything.sent:
        answer = phase
        if direction == "down":
            answer = answers.get(phase)
            if phase == "masked_input":
                survivors = data[1] == 0x15
                after = "consistency" if vector["threat_model"] == "malicious" else "unmasking"
                answer = after if survivors else "masked_input"
        if answer is None:
            continue  # bundles are opened by the recipient alone
        run, _ = stopped_before(vector, answer)
        inspector = reference.Inspector(run, described(step))
        (inspector.server if direction == "up" else inspector.client)(answer, u, data)
        checked += 1
    assert checked > 6 * len(vector["roster"])


_STOPPED: dict[tuple[str, str | None], tuple[reference.Reference, dict]] = {}


def stopped_before(vector, phase: str | None):
    """A run of which everything before a phase has happened, and its step."""
    where = (f"{vector['threat_model']} {vector['ring']} {vector.get('chosen')}", phase)
    if where not in _STOPPED:
        run, step = parties(vector), vector["steps"][0]
        run.exchange_keys({})
        inputs = by_client(step["inputs"])
        run.run_step(described(step), inputs, {})
        if phase in {"masked_input"}:
            run.survivors = None
        _STOPPED[where] = run, step
    return _STOPPED[where]


# -- differential test -------------------------------------------------------------------------


@st.composite
def batches(draw):
    """Parameters of a batch, and a step or more with inputs and dropouts."""
    malicious = draw(st.booleans())
    n = draw(st.integers(4 if malicious else 3, 8))
    ids = tuple(sorted(draw(st.sets(st.integers(0, 2**64 - 1), min_size=n, max_size=n))))
    least = 2 * n // 3 + 1 if malicious else n // 2 + 1
    threshold = draw(st.integers(least, n))
    ring = chosen = None
    if malicious and draw(st.booleans()):
        chosen = draw(st.sampled_from(safe_choices(n)))
    if not malicious and n >= 4 and draw(st.booleans()):
        degree = draw(st.sampled_from(range(2, n, 2)))
        ring = Ring(degree, draw(st.integers(2, degree)))
    vocabulary = [p for p in Phase if p not in (Phase.CONSISTENCY, Phase.DRAW_GRAPH)]
    if malicious:
        vocabulary.append(Phase.CONSISTENCY)
    if ring:
        vocabulary.append(Phase.DRAW_GRAPH)
    if chosen:
        # That too few of the chosen are there is a refusal of one client: test_chosen has it.
        vocabulary.remove(Phase.ADVERTISE_KEYS)
    steps = []
    for number in range(draw(st.integers(1, 3))):
        sections = tuple(
            Section(
                name=f"{number}.{i}",
                length=draw(st.integers(1, 12)),
                maximum=draw(st.sampled_from([1, 2, 15, 100, 2**9, 2**16, 2**20 + 1, 2**24])),
                clip=draw(st.floats(1e-3, 1e3)),
            )
            for i in range(draw(st.integers(1, 3)))
        )
        silent = draw(st.sets(st.sampled_from(ids), max_size=n - threshold + 1))
        phases = vocabulary if number == 0 else [p for p in vocabulary if p in ONLINE]
        drops = {u: draw(st.sampled_from(phases)) for u in sorted(silent)}
        steps.append((sections, drops, draw(st.integers(0, 2**32))))
    return malicious, ids, threshold, ring or chosen, steps


def safe_choices(n: int) -> list[Chosen]:
    """Those that a client's policy allows if nobody is corrupt; not all is left to chance."""
    pairs = ((k, t) for k in range(2, n) for t in range(k // 2 + 1, k + 1))
    return [Chosen(k, t) for k, t in pairs if log2_split(n, 0, k, t) <= -40]


ONLINE = (Phase.MASKED_INPUT, Phase.CONSISTENCY, Phase.UNMASKING)


@settings(max_examples=max(25, settings.default.max_examples // 5))
@given(batches())
def test_both_implementations_send_the_same_bytes(case):
    malicious, roster, threshold, graph, steps = case
    ring = graph if isinstance(graph, Ring) else None
    chosen = graph if isinstance(graph, Chosen) else None
    sent: list[reference.Message] = []
    keys = {u: ed25519(u) for u in roster} if malicious else {}
    session = BatchSession(
        bytes(32),
        roster,
        threshold,
        entropy=fixed_entropy(),
        tap=lambda phase, direction, u, data: sent.append((str(phase), direction, u, data)),
        credentials=Credentials(signing_keys(roster)) if malicious else None,
        ring=ring,
        chosen=chosen,
    )
    numbers = graph and (graph.degree, graph.threshold)
    batch = reference.Batch(
        bytes(32), 0, len(steps), roster, threshold, keys, ring and numbers, chosen and numbers
    )
    other = reference.Reference(batch, fixed_entropy())
    try:
        session.prepare(len(steps), [DropSchedule(steps[0][1])])
    except NotEnoughSurvivors:
        with pytest.raises(reference.RefusedError, match="NotEnoughSurvivors"):
            other.exchange_keys(names(steps[0][1]))
        return
    other.exchange_keys(names(steps[0][1]))
    assert other.sent == sent
    for number, (sections, drops, seed) in enumerate(steps):
        params = make_params(roster=roster, threshold=threshold, sections=sections, step=number)
        inputs = drawn(params, seed)
        step = reference.Step(
            number,
            params.kind,
            tuple(reference.Section(s.name, s.length, s.maximum, s.clip) for s in sections),
            params.broadcast_digest,
        )
        lists = {u: {k: v.tolist() for k, v in x.items()} for u, x in inputs.items()}
        try:
            result = session.step(inputs, params.task, DropSchedule(drops))
        except NotEnoughSurvivors:
            with pytest.raises(reference.RefusedError, match="NotEnoughSurvivors"):
                other.run_step(step, lists, names(drops))
            return
        totals = other.run_step(step, lists, names(drops))
        assert other.sent == sent
        assert totals == {name: total.tolist() for name, total in result.totals.items()}
        assert tuple(other.survivors) == result.survivors


def names(drops) -> dict[int, str]:
    return {u: str(phase) for u, phase in drops.items()}


def drawn(params: AggregationParams, seed: int):
    rng = np.random.default_rng(seed)
    return {
        u: {
            s.name: rng.integers(0, s.maximum, s.length, np.uint32, endpoint=True)
            for s in params.sections
        }
        for u in params.roster
    }


@pytest.mark.parametrize("case", FILES["quantization.json"]["cases"], ids=lambda c: c["maximum"])
def test_the_reference_quantizes_alike(case):
    """NaN and infinity included: they are repaired, not refused (SPEC 7.1)."""
    seed = bytes.fromhex(FILES["quantization.json"]["seed"])
    key = reference.rounding_key(seed, case["step"], case["section"])
    values = [float(x) for x in case["values"]]
    assert reference.quantized(values, case["maximum"], case["clip"], key) == case["codes"]


@pytest.mark.parametrize("case", FILES["quantization.json"]["clips"], ids=lambda c: c["maximum"])
def test_the_reference_follows_the_clip_alike(case):
    clip = reference.next_clip(case["maximum"], case["clip"], case["mean"], case["count"])
    assert clip == pytest.approx(case["next"], rel=1e-12)


def refuse() -> dict[str, np.ndarray]:
    raise AssertionError("nothing may be computed")


@pytest.mark.parametrize("case", FILES["growth.json"]["growth"], ids=str_or_name)
def test_a_cohort_that_grows_is_refused_by_both_after_the_steps_before(case):
    vector, data = FILES["growth.json"], bytes.fromhex(case["bytes"])
    keys = signing_keys(vector["roster"])
    session = BatchSession(
        bytes.fromhex(vector["session"]),
        tuple(vector["roster"]),
        vector["threshold"],
        entropy=fixed_entropy(bytes.fromhex(vector["seed"])),
        credentials=Credentials(keys),
    )
    session.prepare(vector["M"])
    run, params = parties(vector), parameters(vector)
    run.exchange_keys({})
    for step in vector["steps"][: case["after"]]:
        inputs, drops = by_client(step["inputs"]), by_client(step["drops"])
        arrays = {u: {k: np.array(v, np.uint32) for k, v in x.items()} for u, x in inputs.items()}
        task = replace(params.task, step=step["step"])
        session.step(arrays, task, DropSchedule({u: Phase(p) for u, p in drops.items()}))
        run.run_step(described(step), inputs, drops)
    run.key_step += 1
    due = vector["steps"][case["after"]]
    with pytest.raises(reference.RefusedError, match=f"^{case['error']}$"):
        reference.Inspector(run, described(due)).client("masked_input", case["client"], data)
    client = session._clients[0][case["client"]]
    with pytest.raises(
        getattr(errors, case["error"]), match="missed the last step is active again"
    ):
        client.masked_input(data, replace(params.task, step=due["step"]), refuse)


@pytest.mark.parametrize("case", FILES["policy.json"]["cases"], ids=lambda c: str(c["refused"]))
def test_the_reference_refuses_what_the_policy_does(case):
    assert reference.refused_by(case["policy"], case["proposed"]) == case["refused"]


def test_every_part_of_a_policy_refuses_something():
    cases = FILES["policy.json"]["cases"]
    assert {case["refused"] for case in cases} == {None, "batch", "members", "task"}
    assert cases[0]["refused"] is None


@pytest.mark.parametrize("case", FILES["wrong_shares.json"]["cases"])
def test_the_reference_finds_the_same_seed_and_names_the_same_clients(case):
    vector = FILES["wrong_shares.json"]
    name = (
        bytes.fromhex(vector["off0"]),
        reference.u64(vector["client"]),
        reference.u64(vector["key"]),
        vector["purpose"].encode(),
    )
    shares = {int(x): int(share, 16) for x, share in case["shares"].items()}
    given = (shares, case["threshold"], bytes.fromhex(vector["commitment"]), name)
    if case["seed"] is None:
        with pytest.raises(reference.RefusedError, match="SeedLost"):
            reference.recovered(*given)
        return
    seed, wrong = reference.recovered(*given)
    assert (seed.hex(), wrong) == (case["seed"], case["wrong"])


def test_every_negative_case_names_the_section_whose_check_refuses_it():
    text = (FOLDER.parents[2] / "protocols" / "SPEC.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^### (\d+\.\d+) ", text, flags=re.MULTILINE))
    assert set(FIRED) == {case["check"] for _, case in BAD}
    for _, case in BAD:
        named = re.match(r"(\d+\.\d+)(?:, (\d+\.\d+))* \S", case["check"])
        assert named, case["name"]
        assert {number for number in named.groups() if number} <= known


def test_the_worked_values_of_the_spec_are_those_of_the_first_vector():
    """SPEC 3.14, for client 10 of aggregation.json, by the reference."""
    vector = FILES["aggregation.json"]
    run, step = parties(vector), vector["steps"][0]
    run.exchange_keys(by_client(step["drops"]))
    run.run_step(described(step), by_client(step["inputs"]), by_client(step["drops"]))
    values = {
        "off0": run.off0,
        "off1": run.off1,
        "on": reference.on(run.b, run.off1, 0, described(step), run.active),
        "mask-key seed": run.secrets[10].seeds[0][0],
        "its commitment": run.commitments(10)[0],
        "commitment of 10": reference.d("commitments", *run.commitments(10)),
        "mask key": reference.public_of(run.mask_private(10, 0)),
    }
    text = (FOLDER.parents[2] / "protocols" / "SPEC.md").read_text(encoding="utf-8")
    worked = text[text.index("### 3.14") : text.index("## 4. Masks")]
    found = dict(re.findall(r"^([a-z][\w -]*?) +([0-9a-f]{64})$", worked, flags=re.MULTILINE))
    assert found == {name: value.hex() for name, value in values.items()}
