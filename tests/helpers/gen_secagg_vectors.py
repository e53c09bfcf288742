"""Write vectors/*.json anew, or say whether they are what the code gives.

    python tests/helpers/gen_secagg_vectors.py            write them
    python tests/helpers/gen_secagg_vectors.py --check    exit code 1 if a file would change

A change of any value is a change of the protocol: see SPEC.md. `vectors/README.md` describes the
files.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import msgspec
import numpy as np
from secagg_helpers import (
    Run,
    fixed_entropy,
    make_inputs,
    make_params,
    malicious_params,
    rounds_of,
    signing_keys,
)

from protocols import context, messages, signing
from protocols.client.session import ClientSession
from protocols.client.step import statement
from protocols.driver import BatchSession, DropSchedule, run_aggregation
from protocols.errors import CryptoError, DecodeError, PolicyError, RemoteProtocolError
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    ChosenAdvertisement,
    ChosenDirectory,
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
from protocols.params import AggregationParams, BatchParams, Chosen, Ring, Section, Task
from protocols.phases import OPEN_BUNDLES, Phase, Stage
from protocols.policy import Policy
from protocols.primitives import prg, shamir
from protocols.primitives.field import PrimeField
from protocols.primitives.keys import hkdf
from protocols.quantization import Quantizer, next_clip
from protocols.seeds import Kind, SeedSlot
from protocols.signing import Credentials

FOLDER = Path(__file__).parents[1] / "protocols" / "vectors"
SEED = b"vector 1"
ME = 13

Drops = dict[int, Phase]
Sent = messages.Message | bytes


class Recorder:
    """The messages of a run, and the hash of all of them."""

    def __init__(self) -> None:
        self.sent: list[dict[str, object]] = []
        self._hash = hashlib.sha256()

    def __call__(self, phase: Phase, direction: str, u: int, data: bytes) -> None:
        self.sent.append(
            {"phase": str(phase), "direction": direction, "client": u, "bytes": data.hex()}
        )
        self._hash.update(data)

    def result(self) -> dict[str, object]:
        return {"transcript": self._hash.hexdigest(), "messages": self.sent}


def _described(params: AggregationParams, batch: int, steps: int) -> dict[str, object]:
    ring, chosen = params.ring, params.chosen
    graph = chosen and {"chosen": {"degree": chosen.degree, "threshold": chosen.threshold}}
    return {
        "seed": SEED.hex(),
        "session": params.session.hex(),
        "batch": batch,
        "M": steps,
        "roster": params.roster,
        "threshold": params.threshold,
        "threat_model": params.threat_model,
        "identities": [identity.hex() for identity in params.identities],
        "ring": ring and {"degree": ring.degree, "threshold": ring.threshold},
        **(graph or {}),
    }


def _described_step(params: AggregationParams, inputs, drops: Drops, result) -> dict[str, object]:
    return {
        "step": params.step,
        "kind": params.kind,
        "broadcast_digest": params.broadcast_digest.hex(),
        "sections": [
            {"name": s.name, "length": s.length, "maximum": s.maximum, "clip": s.clip}
            for s in params.sections
        ],
        "inputs": {str(u): {k: v.tolist() for k, v in x.items()} for u, x in inputs.items()},
        "drops": {str(u): str(phase) for u, phase in drops.items()},
        "survivors": result.survivors,
        "totals": {name: total.tolist() for name, total in result.totals.items()},
    }


def single(params: AggregationParams, drops: Drops) -> dict[str, object]:
    """An aggregation on its own: M = 1, and the batch has the number of the step."""
    inputs, recorder = make_inputs(params, seed=1), Recorder()
    result = run_aggregation(
        inputs,
        params,
        drops=DropSchedule(drops),
        entropy=fixed_entropy(SEED),
        tap=recorder,
        credentials=Credentials(signing_keys(params.roster)) if params.batch.malicious else None,
    )
    step = _described_step(params, inputs, drops, result)
    return {**_described(params, params.step, 1), "steps": [step], **recorder.result()}


def batch(steps: list[tuple[AggregationParams, Drops]]) -> dict[str, object]:
    """One key exchange, in which drops of the first step count, and a step for every entry."""
    first, recorder = steps[0][0], Recorder()
    session = BatchSession(
        first.session,
        first.roster,
        first.threshold,
        entropy=fixed_entropy(SEED),
        tap=recorder,
        credentials=Credentials(signing_keys(first.roster)) if first.batch.malicious else None,
        ring=first.ring,
        chosen=first.chosen,
    )
    session.prepare(len(steps), [DropSchedule(steps[0][1])])
    described = []
    for index, (params, drops) in enumerate(steps):
        inputs = make_inputs(params, seed=index)
        result = session.step(inputs, params.task, DropSchedule(drops))
        described.append(_described_step(params, inputs, drops, result))
    return {**_described(first, 0, len(steps)), "steps": described, **recorder.result()}


def aggregation() -> dict[str, object]:
    drops = {13: Phase.SHARE_KEYS, 16: Phase.MASKED_INPUT, 22: Phase.UNMASKING}
    return single(make_params(7, ("g", 5, 4), ("w", 3, 11), threshold=4, step=42), drops)


def widths() -> dict[str, object]:
    """Fields of 3, 5, 9, 17, 26 and 27 bits, each of another length."""
    shapes = {1: 1, 5: 13, 67: 8, 20_000: 9, 2**23 + 1: 2, 2**24: 17}
    sections = tuple(
        Section(name=f"s{i}", length=length, maximum=maximum, clip=2.0**-i)
        for i, (maximum, length) in enumerate(shapes.items())
    )
    return single(make_params(5, sections=sections, step=2**40), {22: Phase.MASKED_INPUT})


def wide() -> dict[str, object]:
    """Seventeen clients, so that bitmaps have three bytes; U1 is smaller than the roster."""
    drops = {
        13: Phase.ADVERTISE_KEYS,
        58: Phase.ADVERTISE_KEYS,
        22: Phase.SHARE_KEYS,
        34: Phase.MASKED_INPUT,
        10: Phase.UNMASKING,
    }
    return single(make_params(17, ("g", 3, 4), threshold=9, step=3), drops)


def small_ring() -> dict[str, object]:
    """U1 has k + 1 clients, so that all others are neighbours of each."""
    params = make_params(7, ("g", 3, 4), threshold=4, step=4, ring=Ring(4, 2))
    drops = {10: Phase.ADVERTISE_KEYS, 22: Phase.DRAW_GRAPH, 28: Phase.MASKED_INPUT}
    return single(params, drops)


def three_steps() -> dict[str, object]:
    """Steps of different shapes; one client drops out and comes back."""
    shapes = [[("g", 9, 2)], [("g", 1, 4), ("logits", 6, 16)], [("g", 4, 7)]]
    drops: list[Drops] = [
        {},
        {10: Phase.MASKED_INPUT, 16: Phase.UNMASKING},
        {19: Phase.MASKED_INPUT},
    ]
    return batch(
        [
            (make_params(5, *shape, threshold=3, step=100 + i), drops[i])
            for i, shape in enumerate(shapes)
        ]
    )


def malicious() -> dict[str, object]:
    """Client u signs with the Ed25519 seed that is u as 32 bytes, big-endian."""
    return single(
        malicious_params(7, ("g", 5, 4), step=42), {13: Phase.MASKED_INPUT, 22: Phase.CONSISTENCY}
    )


def malicious_steps() -> dict[str, object]:
    """Who missed a step is not back in the next; keys of three steps were shared."""
    drops: list[Drops] = [{10: Phase.MASKED_INPUT}, {28: Phase.UNMASKING}, {16: Phase.MASKED_INPUT}]
    return batch(
        [(malicious_params(7, ("g", 3 + i, 3 + i), step=5 + i), drops[i]) for i in range(3)]
    )


def ring() -> dict[str, object]:
    """One client does not reveal its nonce, others drop later."""
    params = make_params(9, ("g", 5, 4), threshold=5, step=42, ring=Ring(4, 2))
    return single(params, {31: Phase.DRAW_GRAPH, 13: Phase.MASKED_INPUT, 22: Phase.UNMASKING})


def ring_steps() -> dict[str, object]:
    """Two steps on one ring, in which different clients drop."""
    params = [
        make_params(11, ("g", 7, 5), threshold=6, step=8 + i, ring=Ring(4, 2)) for i in range(2)
    ]
    return batch(
        [
            (params[0], {40: Phase.SHARE_KEYS, 10: Phase.MASKED_INPUT}),
            (params[1], {25: Phase.UNMASKING}),
        ]
    )


def chosen() -> dict[str, object]:
    """One client advertises no keys, another one sends no masked input."""
    params = malicious_params(12, ("g", 5, 4), threshold=7, step=42, chosen=Chosen(10, 8))
    drops = {
        13: Phase.ADVERTISE_KEYS,
        22: Phase.MASKED_INPUT,
    }
    return single(params, drops)


def chosen_steps() -> dict[str, object]:
    """Two steps on one graph, in which different clients drop."""
    params = [
        malicious_params(9, ("g", 7, 5), threshold=5, step=8 + i, chosen=Chosen(6, 5))
        for i in range(2)
    ]
    return batch([(params[0], {28: Phase.UNMASKING}), (params[1], {25: Phase.MASKED_INPUT})])


class Tampered(BatchSession):
    """A run in which bundles are changed on their way.

    Attributes:
        changed: (sender, recipient) of these bundles.
    """

    changed: tuple[tuple[int, int], ...] = ()

    def _session(self, params: BatchParams, client: int) -> ClientSession:
        session = super()._session(params, client)
        answer, broken = session.answer, {u for u, v in self.changed if v == client}

        def tampered(stage: Stage, data: bytes) -> bytes:
            if stage == OPEN_BUNDLES:
                delivery = messages.decode(data, BundleDelivery, params)
                senders = (u for u in params.roster if u != client)
                bundles = zip(senders, delivery.bundles, strict=True)
                parts = (bytes(len(b)) if u in broken else b for u, b in bundles)
                data = messages.encode(BundleDelivery(delivery.sharers, tuple(parts)))
            return answer(stage, data)

        session.answer = tampered
        return session


def lost() -> dict[str, object]:
    """Two bundles are changed on the way; later one client drops out."""
    keys = [malicious_params(7, ("g", 3, 4), step=5 + i) for i in range(2)]
    recorder, changed = Recorder(), ((10, 16), (13, 22))
    first = keys[0]
    session = Tampered(
        first.session,
        first.roster,
        first.threshold,
        entropy=fixed_entropy(SEED),
        tap=recorder,
        credentials=Credentials(signing_keys(first.roster)),
    )
    session.changed = changed
    session.prepare(2)
    described = []
    for index, (params, drops) in enumerate(zip(keys, [{}, {25: Phase.MASKED_INPUT}], strict=True)):
        inputs = make_inputs(params, seed=index)
        result = session.step(inputs, params.task, DropSchedule(drops))
        described.append(_described_step(params, inputs, drops, result))
    head = {**_described(first, 0, 2), "changed": changed}
    return {**head, "steps": described, **recorder.result()}


def growth() -> dict[str, object]:
    """Two steps in which clients fall silent, and a server that then takes all back in."""
    keys = [malicious_params(7, ("g", 3, 4), step=5 + i) for i in range(3)]
    drops: list[Drops] = [{10: Phase.MASKED_INPUT}, {28: Phase.CONSISTENCY}, {}]
    found = batch(list(zip(keys, drops, strict=True)))
    everyone = messages.encode_set(keys[0].roster, keys[0].roster)
    cases = [
        ("grown_since_u3", 1, ME, "6.3 A within U3 of the last step"),
        # Client 28 was never told who survived the second step.
        ("grown_since_a", 2, 28, "6.3 A within A of the last step"),
    ]
    return found | {
        "growth": [
            {
                "name": f"bad_{name}",
                "after": after,
                "client": client,
                "bytes": messages.encode(StepRequest(after, everyone)).hex(),
                "error": "RemoteProtocolError",
                "check": check,
            }
            for name, after, client, check in cases
        ]
    }


def policy() -> dict[str, object]:
    """Proposals, and what the policy of a client refuses of them (SPEC 2.4)."""
    usual = {"min_clients": 3, "colluders": 1, "min_honest": 2, "max_steps": 8, "sigma": 40}
    usual |= {"max_input": 255, "max_length": 10, "min_clip": 0.5, "max_clip": 2.0}
    usual |= {"kinds": ["gradient"], "first_step": 5}
    asked = {"threat_model": "malicious", "M": 8, "n": 7, "threshold": 5, "chosen": None}
    asked |= {"members": 7, "step": 5, "kind": "gradient", "sections": [[4, 255, 1.0], [6, 1, 2.0]]}
    changes: list[tuple[dict[str, object], dict[str, object]]] = [
        ({}, {}),
        ({}, {"threat_model": "semi-honest"}),
        ({}, {"M": 9}),
        ({"min_clients": 8}, {}),
        ({"colluders": 4}, {}),
        ({"colluders": 3}, {}),
        ({"colluders": 2}, {"members": 7}),
        ({"colluders": 2, "min_honest": 4}, {}),
        ({"min_clients": 6}, {"members": 5}),
        ({"colluders": 2}, {"n": 9, "threshold": 6, "members": 9}),
        ({"colluders": 2}, {"n": 9, "threshold": 6, "members": 10}),
        ({}, {"step": 4}),
        ({}, {"kind": "labels"}),
        ({"kinds": None}, {"kind": "labels"}),
        ({}, {"sections": [[4, 256, 1.0]]}),
        ({}, {"sections": [[4, 255, 1.0], [7, 1, 1.0]]}),
        ({}, {"sections": [[4, 255, 0.25]]}),
        ({}, {"sections": [[4, 255, 2.5]]}),
        ({"colluders": 3}, {"n": 40, "threshold": 27, "members": 40, "chosen": [16, 14]}),
        ({"colluders": 3}, {"n": 40, "threshold": 27, "members": 40, "chosen": [14, 12]}),
        ({"colluders": 2}, {"n": 40, "threshold": 27, "members": 40, "chosen": [14, 12]}),
        (
            {"colluders": 2, "sigma": 60},
            {"n": 40, "threshold": 27, "members": 40, "chosen": [14, 12]},
        ),
    ]
    cases = [(usual | bound, asked | changed) for bound, changed in changes]
    return {
        "cases": [
            {"policy": bounds, "proposed": proposed, "refused": _refused(bounds, proposed)}
            for bounds, proposed in cases
        ]
    }


def proposal(bounds, proposed) -> tuple[Policy, BatchParams, Task]:
    """What a case of policy.json stands for."""
    malicious = proposed["threat_model"] == "malicious"
    params = (malicious_params if malicious else make_params)(
        proposed["n"],
        threshold=proposed["threshold"],
        step=proposed["step"],
        kind=proposed["kind"],
        chosen=Chosen(*proposed["chosen"]) if proposed["chosen"] else None,
        sections=tuple(
            Section(name=str(i), length=length, maximum=maximum, clip=clip)
            for i, (length, maximum, clip) in enumerate(proposed["sections"])
        ),
    )
    kinds = bounds["kinds"] if bounds["kinds"] is None else frozenset(bounds["kinds"])
    own = Policy(**{**bounds, "kinds": kinds})
    return own, dataclasses.replace(params.batch, steps=proposed["M"]), params.task


def _refused(bounds, proposed) -> str | None:
    """What is refused first: the batch, the number of members, the task; None: nothing is."""
    own, batch, task = proposal(bounds, proposed)
    checks = {
        "batch": lambda: own.check_batch(batch),
        "members": lambda: own.check_members(batch, proposed["members"]),
        "task": lambda: own.check_task(task),
    }
    for what, check in checks.items():
        try:
            check()
        except PolicyError:
            return what
    return None


def wrong_shares() -> dict[str, object]:
    """Shares of one seed of which some are wrong: the seed and who is named (SPEC 3.7)."""
    slot = SeedSlot(bytes(range(32)), 13, 2, Kind.SELF_MASK)
    seed = hashlib.sha256(b"seed").digest()
    cases = []
    for holders, threshold, wrong in [
        (5, 4, ()),
        (5, 4, (2,)),  # one share to spare: the search finds it
        (9, 5, (1, 4)),  # two of four to spare: decoded
        (9, 5, (1, 2, 3, 4)),  # the search finds what decoding does not
        (7, 3, (1, 2, 7)),
        (6, 5, (1, 2)),  # too many
        (4, 5, ()),  # too few
    ]:
        dealt = slot.split(seed, threshold, range(1, 10))
        shares = {x: dealt[x] for x in range(1, holders + 1)}
        for x in wrong:
            value = int.from_bytes(shares[x], "big")
            shares[x] = ((value + x) % shamir.P).to_bytes(32, "big")
        try:
            found, named = slot.recover(shares, threshold, slot.commit(seed))
            result = {"seed": found.hex(), "wrong": sorted(named)}
        except CryptoError:
            result = {"seed": None, "wrong": []}
        listed = {str(x): share.hex() for x, share in shares.items()}
        cases.append({"threshold": threshold, "shares": listed, **result})
    return {
        "off0": slot.off0.hex(),
        "client": slot.client,
        "key": slot.key,
        "purpose": str(slot.kind),
        "commitment": slot.commit(seed).hex(),
        "cases": cases,
    }


# What every upload must survive, by the end of its name; and what must be checked, by name.
_DAMAGE = {
    "prefix": "5.2 one encoding of each message",
    "extension": "5.2 one encoding of each message",
    "version": "5.2 a tag that is expected",
    "long_header": "5.2 one encoding of each message",
    "later_step": "5.2 an upload whose round is to come",
    "unsigned": "5.2 uploads inside Signed",
    "signature": "3.11 the signature",
    "of_another_client": "3.11 the sender",
    "signed_elsewhere": "3.11 the context",
}
_CHECKS = {
    "low_order_key": "6.1 no key of low order",
    "one_key_in_two_places": "6.1 all keys differ",
    "no_key_for_the_step": "6.1 M mask keys",
    "commitments_of_others": "6.2 the commitments that were advertised",
    "element_not_below_p": "5.3 values below p",
    "padding_not_zero": "5.3 unused bits are zero",
    "vector_too_short": "5.3 the size of a vector",
    "share_missing": "6.4 list lengths",
    "shares_of_the_dropped": "6.4 list lengths",
    "share_not_an_element": "3.6 elements below P",
    "active_set_below_threshold": "6.3 |A| >= t",
    "active_set_without_recipient": "6.3 u in A",
    "key_step_never_made": "6.3 keys that are unspent",
    "bit_beyond_the_roster": "5.4 unused bits are zero",
    "survivors_below_threshold": "6.4, 6.8 |U3| >= t",
    "survivors_without_me": "6.4, 6.8 u in U3",
    "set_of_two_bytes": "5.4 the size of a bitmap",
    "directory_without_keys": "6.2 list length = |U1|",
    "directory_in_another_order": "6.2 own advertisement byte for byte",
    "directory_of_unsigned_keys": "6.2 own advertisement byte for byte",
    "directory_with_one_key_twice": "6.2 signatures of the advertisements",
    "directory_with_a_forged_peer": "6.2 signatures of the advertisements",
    "lost_pair_beyond_the_roster": "5.5 k < n",
    "lost_pair_descending": "5.5 i < k",
    "lost_pairs_descending": "5.5 pairs ascend",
    "lost_pair_twice": "5.5 pairs ascend",
    "lost_pair_not_active": "6.3 both ends of a lost pair in A",
    "another_client_cut_off": "6.3 holders of every member's shares in A",
    "too_few_holders_left": "6.3 holders of own shares in A",
    "proof_below_threshold": "6.8 t signers",
    "proof_in_another_order": "6.8 every signature on its own U3",
    "proof_with_one_signature_less": "6.8 list length = |signers|",
    "survivors_in_place_of_the_proof": "5.2 a tag that is expected",
    "advertisement_without_nonce": "5.2 the tags of this graph",
    "nonce_not_committed_to": "6.9 a nonce that was committed to",
    "nonce_of_another": "6.9 a nonce that was committed to",
    "commitments_without_me": "6.9 own commitment is there",
    "commitment_changed": "6.9 own commitment is there",
    "commitment_missing": "6.9 list length = |C|",
    "nonce_changed": "6.9 every nonce is what was committed to",
    "neighbour_missing": "6.9 an advertisement of every neighbour",
    "neighbour_is_another": "6.9 the nonce commitment listed for the neighbour",
    "ring_below_threshold": "6.9 |U1| >= max(t, tau + 1)",
    "one_bundle_missing": "6.2 a bundle for every neighbour",
    "active_set_without_neighbours": "6.3 holders of own shares in A",
    "advertisement_without_a_choice": "5.2 the tags of this graph",
    "too_few_chosen": "6.1 a list has k members",
    "too_many_chosen": "6.1 a list has k members",
    "self_chosen": "6.1 a list has not its sender",
    "choice_of_another_roster": "5.4 the size of a bitmap",
    "one_chosen_hidden": "6.2 everybody that u chose is among the neighbours",
    "advertisement_missing": "6.2 list length = number of neighbours",
    "few_members": "6.2 |U1| >= t",
    "too_few_chosen_in_u1": "6.2 tau of those that u chose in U1",
    "directory_without_me": "6.2 u in U1",
    "neighbour_outside_u1": "6.2 neighbours within U1 without u",
    "list_changed_on_the_way": "6.2 signatures of the advertisements",
    "list_of_a_peer_too_long": "6.2 a list has k members",
    "neighbour_that_did_not_choose": "6.2 every other neighbour's list has u",
    "one_key_of_two_peers": "6.2 all keys differ",
    "active_set_without_holders": "6.3 holders of own shares in A",
    "survivors_without_holders": "6.4, 6.8 holders of own shares in U3",
    "too_few_holders_signed": "6.8 tau signers",
    "signature_of_no_holder": "6.8 signers are holders",
    "survivors_without_neighbours": "6.4 holders of own shares in U3",
}


def _check_of(name: str, phase: Phase) -> str:
    """Return the section of SPEC.md and the rule that refuses a case."""
    return _CHECKS.get(name) or _DAMAGE[name.removeprefix(f"{phase}_")]


class Bad:
    """Negative cases: an honest run up to a message that must be refused.

    Args:
        params: of the run.
    """

    def __init__(self, params: AggregationParams) -> None:
        self.params = params
        self.cases: list[dict[str, object]] = []
        self._rounds = rounds_of(params)

    def up(self, name: str, phase: Phase, data: Sent, error: type = RemoteProtocolError) -> None:
        self._add(name, phase, "server", data, error)

    def down(self, name: str, phase: Phase, data: Sent, error: type = RemoteProtocolError) -> None:
        """`phase` is that of the answer which is not given."""
        self._add(name, phase, "client", data, error)

    def _add(self, name: str, phase: Phase, receiver: str, message: Sent, error: type) -> None:
        data = message if isinstance(message, bytes) else messages.encode(message)
        case = {"phase": str(phase), "receiver": receiver, "bytes": data.hex()}
        check = _check_of(name, phase)
        self.cases.append({"name": f"bad_{name}", **case, "error": error.__name__, "check": check})

    def bits(self, *members: int) -> bytes:
        return messages.encode_set(members, self.params.roster)

    def before(self, phase: Phase) -> Run:
        """A run in which the clients answer in `phase` next."""
        index = self._rounds.index(phase)
        run = Run(self.params, self._rounds[index - 1] if index else None)
        if phase == Phase.MASKED_INPUT:
            run.begin()
        return run

    def good(self, phase: Phase) -> bytes:
        return self.before(phase).answer(ME, phase)

    def received(self, phase: Phase) -> bytes:
        return self.before(phase).replies[ME]

    def result(self) -> dict[str, object]:
        described = _described(self.params, self.params.step, 1)
        step = {
            "step": self.params.step,
            "kind": self.params.kind,
            "broadcast_digest": self.params.broadcast_digest.hex(),
            "sections": [
                {"name": s.name, "length": s.length, "maximum": s.maximum, "clip": s.clip}
                for s in self.params.sections
            ],
            "drops": {},
            "inputs": {
                str(u): {k: v.tolist() for k, v in x.items()}
                for u, x in make_inputs(self.params).items()
            },
        }
        described["seed"] = b"fixed".hex()
        return {**described, "steps": [step], "client": ME, "cases": self.cases}

    def damage(self, phase: Phase) -> None:
        """What every upload must survive."""
        good = self.good(phase)
        self.up(f"{phase}_prefix", phase, good[:-1], DecodeError)
        self.up(f"{phase}_extension", phase, good + b"\0", DecodeError)
        version = good[:1] + bytes([good[1] + 0x40]) + good[2:]
        self.up(f"{phase}_version", phase, version, DecodeError)
        long = b"\xdc\0" + bytes([good[0] & 15]) + good[1:]
        self.up(f"{phase}_long_header", phase, long, DecodeError)


def bad() -> dict[str, object]:
    b = Bad(make_params(5))
    advertise, share, mask, unmask = rounds_of(b.params)
    for phase in rounds_of(b.params):
        b.damage(phase)
        later = UnmaskShares(1, (), ())
        b.up(f"{phase}_later_step", phase, later)
    low = Advertisement(bytes(32), (b"\x09" + bytes(31),), bytes(32))
    b.up("low_order_key", advertise, low)
    twice = Advertisement(b"\x09" + bytes(31), (b"\x09" + bytes(31),), bytes(32))
    b.up("one_key_in_two_places", advertise, twice)
    none = Advertisement(b"\x09" + bytes(31), (), bytes(32))
    b.up("no_key_for_the_step", advertise, none)
    b.up("commitments_of_others", share, Run(b.params, advertise).answer(16, share))
    b.up(
        "element_not_below_p",
        mask,
        messages.encode(MaskedInput(0, (b"\x7f" + bytes(4),))),
        DecodeError,
    )
    b.up(
        "padding_not_zero",
        mask,
        messages.encode(MaskedInput(0, (bytes(4) + b"\x80",))),
        DecodeError,
    )
    b.up("vector_too_short", mask, MaskedInput(0, (bytes(4),)), DecodeError)
    b.up("share_missing", unmask, UnmaskShares(0, (bytes(32),) * 4, ()))
    b.up(
        "shares_of_the_dropped",
        unmask,
        messages.encode(UnmaskShares(0, (bytes(32),) * 4, (bytes(32),))),
    )
    beyond_p = UnmaskShares(0, (b"\xff" * 32,) * 5, ())
    b.up("share_not_an_element", unmask, beyond_p, DecodeError)
    few, others, everyone = b.bits(10, 13, 16), b.bits(10, 16, 19, 22), b.bits(*b.params.roster)
    b.down("active_set_below_threshold", mask, StepRequest(0, few))
    b.down("active_set_without_recipient", mask, StepRequest(0, others))
    b.down("key_step_never_made", mask, StepRequest(1, everyone))
    b.down("bit_beyond_the_roster", mask, StepRequest(0, b"\xff"), DecodeError)
    b.down("survivors_below_threshold", unmask, SurvivorSet(few))
    b.down("survivors_without_me", unmask, SurvivorSet(others))
    b.down("set_of_two_bytes", unmask, SurvivorSet(everyone + b"\0"), DecodeError)
    b.down("directory_without_keys", share, KeyDirectory(everyone, ()))
    directory = messages.decode(b.received(share), KeyDirectory, b.params.batch)
    swapped = KeyDirectory(directory.members, directory.advertisements[::-1])
    b.down("directory_in_another_order", share, swapped)
    return b.result()


def bad_malicious() -> dict[str, object]:
    b = Bad(malicious_params(5))
    batch, rounds = b.params.batch, rounds_of(b.params)
    _, share, mask, confirm, unmask = rounds
    for phase in rounds:
        good = b.good(phase)
        b.damage(phase)
        signed = messages.decode(good, Signed, batch, b.params.task)
        b.up(f"{phase}_unsigned", phase, signed.body, DecodeError)
        wrong = signed.signature[:-1] + bytes([signed.signature[-1] ^ 1])
        b.up(f"{phase}_signature", phase, Signed(signed.body, wrong))
        other = b.before(phase).answer(16, phase)
        b.up(f"{phase}_of_another_client", phase, other)
        key, nowhere = signing_keys(b.params.roster)[ME], b"another context".ljust(32)
        upload = messages.decode_upload(signed.body, batch, b.params.task)
        b.up(f"{phase}_signed_elsewhere", phase, signing.wrap(key, ME, nowhere, upload))
    directory = messages.decode(b.received(share), KeyDirectory, batch)
    unsigned = [messages.decode(a, Signed, batch).body for a in directory.advertisements]
    forged = KeyDirectory(directory.members, tuple(unsigned))
    b.down("directory_of_unsigned_keys", share, forged)
    two = (*directory.advertisements[:3], directory.advertisements[4], directory.advertisements[4])
    b.down(
        "directory_with_one_key_twice", share, messages.encode(KeyDirectory(directory.members, two))
    )
    # The server puts keys of its own in the place of a peer's; those of the recipient are intact.
    peer = messages.decode(directory.advertisements[2], Signed, batch)
    own = messages.decode(peer.body, Advertisement, batch)
    keys = msgspec.structs.replace(own, channel_key=b"\x0b" + bytes(31))
    theirs = messages.encode(Signed(messages.encode(keys), peer.signature))
    swapped = (*directory.advertisements[:2], theirs, *directory.advertisements[3:])
    b.down("directory_with_a_forged_peer", share, KeyDirectory(directory.members, swapped))
    few, others = b.bits(10, 13, 16), b.bits(10, 16, 19, 22)
    b.down("active_set_below_threshold", mask, StepRequest(0, few))
    everyone = b.bits(*b.params.roster)
    b.down("lost_pair_beyond_the_roster", mask, StepRequest(0, everyone, ((1, 5),)), DecodeError)
    b.down("lost_pair_descending", mask, StepRequest(0, everyone, ((2, 1),)), DecodeError)
    backwards = StepRequest(0, everyone, ((1, 2), (0, 1)))
    b.down("lost_pairs_descending", mask, backwards, DecodeError)
    b.down("lost_pair_twice", mask, StepRequest(0, everyone, ((0, 1), (0, 1))), DecodeError)
    without_22 = b.bits(10, 13, 16, 19)
    b.down("lost_pair_not_active", mask, StepRequest(0, without_22, ((0, 4),)))
    b.down("too_few_holders_left", mask, StepRequest(0, everyone, ((0, 1), (1, 2))))
    cut = StepRequest(0, everyone, ((0, 2), (0, 3)))
    b.down("another_client_cut_off", mask, cut)
    b.down("survivors_without_me", confirm, SurvivorSet(others))
    b.down("survivors_below_threshold", confirm, SurvivorSet(few))
    proof = messages.decode(b.received(unmask), ConsistencyProof, batch)
    three = ConsistencyProof(few, proof.signatures[:3])
    b.down("proof_below_threshold", unmask, three)
    swapped = ConsistencyProof(proof.signers, proof.signatures[::-1])
    b.down("proof_in_another_order", unmask, swapped)
    short = ConsistencyProof(proof.signers, proof.signatures[:4])
    b.down("proof_with_one_signature_less", unmask, short)
    b.down(
        "survivors_in_place_of_the_proof", unmask, messages.encode(SurvivorSet(few)), DecodeError
    )
    return b.result()


def _one_bundle_less(data: bytes, b: Bad) -> bytes:
    sent = messages.decode(data, ShareBundles, b.params.batch)
    return messages.encode(ShareBundles(sent.commitments, sent.bundles[1:]))


def bad_ring() -> dict[str, object]:
    b = Bad(make_params(9, threshold=5, ring=Ring(4, 2)))
    batch, rounds = b.params.batch, rounds_of(b.params)
    advertise, draw, share, mask, unmask = rounds
    for phase in (advertise, draw):
        b.damage(phase)
    whole = messages.decode(b.good(advertise), RingAdvertisement, batch)
    plain = Advertisement(whole.channel_key, whole.mask_keys, whole.commitment)
    b.up("advertisement_without_nonce", advertise, plain, DecodeError)
    b.up("nonce_not_committed_to", draw, Nonce(bytes(32)))
    b.up("nonce_of_another", draw, b.before(draw).answer(16, draw))
    listed = messages.decode(b.received(draw), NonceCommitments, batch)
    some = b.bits(*b.params.roster[2:])
    b.down(
        "commitments_without_me",
        draw,
        messages.encode(NonceCommitments(some, listed.commitments[2:])),
    )
    changed = (listed.commitments[0], bytes(32), *listed.commitments[2:])
    b.down("commitment_changed", draw, NonceCommitments(listed.members, changed))
    short = NonceCommitments(listed.members, listed.commitments[1:])
    b.down("commitment_missing", draw, short)
    ring = messages.decode(b.received(share), RingDirectory, batch)
    nonces = (bytes(32), *ring.nonces[1:])
    others = RingDirectory(ring.members, nonces, ring.advertisements)
    b.down("nonce_changed", share, others)
    fewer = RingDirectory(ring.members, ring.nonces, ring.advertisements[1:])
    b.down("neighbour_missing", share, fewer)
    twice = (ring.advertisements[1], *ring.advertisements[1:])
    strangers = RingDirectory(ring.members, ring.nonces, twice)
    b.down("neighbour_is_another", share, strangers)
    gone = RingDirectory(b.bits(*b.params.roster[:4]), ring.nonces[:4], ring.advertisements)
    b.down("ring_below_threshold", share, gone)
    b.up("one_bundle_missing", share, _one_bundle_less(b.good(share), b))
    adverts = Run(b.params, advertise).sent
    far = [u for u, sent in adverts.items() if u != ME and sent not in ring.advertisements]
    b.down("active_set_without_neighbours", mask, StepRequest(0, b.bits(ME, *far)))
    b.down("survivors_without_neighbours", unmask, SurvivorSet(b.bits(ME, *far)))
    b.down("survivors_without_me", unmask, SurvivorSet(some))
    return b.result()


class BadChosen(Bad):
    """Negative cases of the chosen graph.

    Attributes:
        own: whom the client concerned chose, of the clients other than it.
        far: one that it did not choose.
    """

    def __init__(self) -> None:
        super().__init__(malicious_params(9, threshold=5, chosen=Chosen(6, 5)))
        self.advert = self.body(self.good(Phase.ADVERTISE_KEYS))
        self.own = messages.decode_set(self.advert.chosen, self.params.roster)
        self.far = next(u for u in self.params.roster if u not in (ME, *self.own))
        self.least = [u for u in self.params.roster if u not in self.own[:2]]  # too few of them

    def signed(self, u: int, message: messages.Message) -> bytes:
        off0 = context.offline(self.params.batch)
        return signing.wrap(signing_keys(self.params.roster)[u], u, off0, message)

    def body(self, data: bytes) -> ChosenAdvertisement:
        inside = messages.decode(data, Signed, self.params.batch).body
        return messages.decode(inside, ChosenAdvertisement, self.params.batch)

    def calls_me(self, data: bytes) -> bool:
        """Tell whether the sender of an advertisement chose the client concerned."""
        return ME in messages.decode_set(self.body(data).chosen, self.params.roster)

    def adverts(self) -> None:
        phase, whole, own = Phase.ADVERTISE_KEYS, self.advert, self.own
        self.damage(phase)
        plain = Advertisement(whole.channel_key, whole.mask_keys, whole.commitment)
        self.up("advertisement_without_a_choice", phase, self.signed(ME, plain), DecodeError)
        lists = {
            "too_few_chosen": own[1:],
            "too_many_chosen": (*own, self.far),
            "self_chosen": (*own[1:], ME),
        }
        for name, listed in lists.items():
            message = msgspec.structs.replace(whole, chosen=self.bits(*listed))
            self.up(name, phase, self.signed(ME, message))
        long = msgspec.structs.replace(whole, chosen=whole.chosen + b"\0")
        self.up("choice_of_another_roster", phase, self.signed(ME, long), DecodeError)

    def directories(self) -> None:
        phase, roster, own = Phase.SHARE_KEYS, self.params.roster, self.own
        whole = messages.decode(self.received(phase), ChosenDirectory, self.params.batch)
        near = messages.decode_set(whole.neighbours, roster)
        sent = dict(zip(near, whole.advertisements, strict=True))

        def shown(adverts: dict[int, bytes], members: bytes = whole.members) -> ChosenDirectory:
            ordered = {u: adverts[u] for u in sorted(adverts)}
            return ChosenDirectory(members, self.bits(*ordered), tuple(ordered.values()))

        hidden = {u: data for u, data in sent.items() if u != own[0]}
        self.down("one_chosen_hidden", phase, shown(hidden))
        fewer = ChosenDirectory(whole.members, whole.neighbours, whole.advertisements[1:])
        self.down("advertisement_missing", phase, fewer)
        self.down("few_members", phase, shown(sent, self.bits(*roster[:4])))
        some = {u: data for u, data in sent.items() if u in self.least}
        self.down("too_few_chosen_in_u1", phase, shown(some, self.bits(*self.least)))
        # U1 without one that chose me: all other checks still hold.
        caller = next(u for u, data in sent.items() if self.calls_me(data))
        outside = self.bits(*(u for u in roster if u != caller))
        self.down("neighbour_outside_u1", phase, shown(sent, outside))
        without_me = self.bits(*(u for u in roster if u != ME))
        self.down("directory_without_me", phase, shown(sent, without_me))
        peer = own[0]
        theirs, signature = (
            self.body(sent[peer]),
            messages.decode(sent[peer], Signed, self.params.batch).signature,
        )
        false = msgspec.structs.replace(theirs, chosen=self.bits(*(set(roster[:7]) - {peer})))
        lied = messages.encode(Signed(messages.encode(false), signature))
        self.down("list_changed_on_the_way", phase, shown({**sent, peer: lied}))
        others = self.bits(*(u for u in roster if u not in (ME, peer)))
        seven = msgspec.structs.replace(theirs, chosen=others)
        self.down("list_of_a_peer_too_long", phase, shown({**sent, peer: self.signed(peer, seven)}))
        twice = msgspec.structs.replace(theirs, channel_key=self.body(sent[own[1]]).channel_key)
        self.down("one_key_of_two_peers", phase, shown({**sent, peer: self.signed(peer, twice)}))
        stranger = self.body(self.before(phase).sent[self.far])
        away = self.bits(*[u for u in roster if u not in (ME, self.far)][:6])
        uncalled = self.signed(self.far, msgspec.structs.replace(stranger, chosen=away))
        self.down("neighbour_that_did_not_choose", phase, shown({**sent, self.far: uncalled}))

    def steps(self) -> None:
        roster, batch = self.params.roster, self.params.batch
        places = [(roster.index(min(ME, u)), roster.index(max(ME, u))) for u in self.own[:2]]
        everyone, least = self.bits(*roster), self.bits(*self.least)
        lost = StepRequest(0, everyone, tuple(sorted(places)))
        self.down("too_few_holders_left", Phase.MASKED_INPUT, lost)
        self.down("active_set_without_holders", Phase.MASKED_INPUT, StepRequest(0, least))
        self.down("survivors_without_holders", Phase.CONSISTENCY, SurvivorSet(least))
        proof = messages.decode(self.received(Phase.UNMASKING), ConsistencyProof, batch)
        signers = messages.decode_set(proof.signers, roster)
        four = ConsistencyProof(self.bits(*signers[:4]), proof.signatures[:4])
        self.down("too_few_holders_signed", Phase.UNMASKING, four)
        given = Run(self.params, Phase.CONSISTENCY).sent[self.far]
        strange = dict(zip(signers, proof.signatures, strict=True))
        strange[self.far] = messages.decode(given, Signed, batch).signature
        mixed = {u: strange[u] for u in sorted(strange)}
        more = ConsistencyProof(self.bits(*mixed), tuple(mixed.values()))
        self.down("signature_of_no_holder", Phase.UNMASKING, more)


def bad_chosen() -> dict[str, object]:
    b = BadChosen()
    b.adverts()
    b.directories()
    b.up("one_bundle_missing", Phase.SHARE_KEYS, _one_signed_bundle_less(b))
    b.up("share_missing", Phase.UNMASKING, _one_signed_share_less(b))
    b.steps()
    return b.result()


def _one_signed_bundle_less(b: Bad) -> bytes:
    run = b.before(Phase.SHARE_KEYS)
    data = messages.decode(run.answer(ME, Phase.SHARE_KEYS), Signed, b.params.batch).body
    off1 = run.clients[ME].state.off1
    short = messages.decode(_one_bundle_less(data, b), ShareBundles, b.params.batch)
    return signing.wrap(signing_keys(b.params.roster)[ME], ME, off1, short)


def _one_signed_share_less(b: Bad) -> bytes:
    run = b.before(Phase.UNMASKING)
    current = run.clients[ME].state.current
    data = messages.decode(run.answer(ME, Phase.UNMASKING), Signed, b.params.batch).body
    whole = messages.decode(data, UnmaskShares, b.params.batch)
    short = UnmaskShares(whole.key, whole.self_shares[1:], whole.key_shares)
    bound = statement(b.params.batch, current)
    return signing.wrap(signing_keys(b.params.roster)[ME], ME, bound, short)


def expansion() -> dict[str, object]:
    key = bytes(range(32))
    cases = [
        {"bits": bits, "length": length, "values": _expanded(key, bits, length)}
        for bits, length in [
            (2, 40), (2, 1), (4, 17), (5, 40), (8, 33), (9, 40), (15, 7), (16, 40), (17, 5),
            (20, 40), (26, 23), (32, 40), (32, 2),
        ]
    ]  # fmt: skip
    derived = hkdf(key, "label", b"", b"a", b"bc").hex()
    return {"key": key.hex(), "hkdf_label_empty_a_bc": derived, "cases": cases}


def quantization() -> dict[str, object]:
    seed, cases = bytes(range(32)), []
    values = ["0.0", "0.25", "-0.3", "1.5", "-1.5", "1e300", "nan", "inf", "-inf"]
    for levels, clip in [(1, 1.0), (15, 1.0), (255, 0.5), (65535, 1024.0), (1 << 24, 2.0**-20)]:
        for step, section in [(0, "gradient"), (2**63, "labels")]:
            numbers = np.array([float(x) for x in values])
            codes = Quantizer(levels, clip).encode(numbers, seed=seed, step=step, section=section)
            cases.append(
                {
                    "maximum": levels,
                    "clip": clip,
                    "step": step,
                    "section": section,
                    "values": values,
                    "codes": codes.tolist(),
                }
            )
    clips = []
    for levels, clip, mean, count in [
        (255, 1.0, [0.0, 0.0], 5),
        (255, 1.0, [0.3, -0.2, 0.1], 5),
        (15, 0.5, [0.5, -0.5], 100),
        (1, 1.0, [0.9, 0.2], 3),
        (65535, 2.0**-20, [0.0], 2),
        (65535, 2.0**20, [9e5, -9e5], 9),
    ]:
        following = next_clip(Quantizer(levels, clip), np.array(mean), count)
        clips.append(
            {"maximum": levels, "clip": clip, "mean": mean, "count": count, "next": following}
        )
    return {"seed": seed.hex(), "cases": cases, "clips": clips}


def _expanded(key: bytes, bits: int, length: int) -> list[int]:
    return prg.expand(key, PrimeField(bits), length).tolist()


def render(value: dict[str, object]) -> str:
    return json.dumps(value, indent=1) + "\n"


VECTORS = {
    "aggregation.json": aggregation,
    "bad.json": bad,
    "bad_chosen.json": bad_chosen,
    "bad_malicious.json": bad_malicious,
    "bad_ring.json": bad_ring,
    "batch.json": three_steps,
    "chosen.json": chosen,
    "chosen_batch.json": chosen_steps,
    "expansion.json": expansion,
    "growth.json": growth,
    "lost.json": lost,
    "malicious.json": malicious,
    "malicious_batch.json": malicious_steps,
    "policy.json": policy,
    "quantization.json": quantization,
    "ring.json": ring,
    "ring_batch.json": ring_steps,
    "small_ring.json": small_ring,
    "wide.json": wide,
    "widths.json": widths,
    "wrong_shares.json": wrong_shares,
}


def main(check: bool) -> int:
    """Write all files, or count those that would change."""
    stale = 0
    for name, make in VECTORS.items():
        path, text = FOLDER / name, render(make())
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale += 1
            print(f"{path} is not what the code gives")
    return min(stale, 1)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
