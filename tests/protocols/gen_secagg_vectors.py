"""Write vectors/*.json anew. A change of any value is a change of the protocol: see SPEC.md.

Run from the repository root: python tests/protocols/gen_secagg_vectors.py
"""

import json
from pathlib import Path

from secagg_helpers import (
    ROUNDS,
    Run,
    fixed_entropy,
    make_inputs,
    make_params,
    malicious_params,
    signing_keys,
)

from protocols import context, messages, prg
from protocols.driver import BatchSession, DropSchedule, Trust, run_aggregation
from protocols.errors import DecodeError, RemoteProtocolError
from protocols.field import PrimeField
from protocols.keys import hkdf
from protocols.messages import (
    Advertisement,
    KeyDirectory,
    MaskedInput,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.params import AggregationParams, Phase, Ring

FOLDER = Path(__file__).parent / "vectors"
SEED = b"vector 1"
DROPS = {13: Phase.SHARE_KEYS, 16: Phase.MASKED_INPUT, 22: Phase.UNMASKING}


def recorder(sent: list[dict[str, object]]):
    def tap(phase, direction, u, data):
        sent.append({"phase": str(phase), "direction": direction, "client": u, "bytes": data.hex()})

    return tap


def described(params: AggregationParams) -> dict[str, object]:
    return {
        "entropy": "SHA-256(seed || u64 counter), counter from 0, shared by all clients in order",
        "seed": SEED.hex(),
        "session": params.session.hex(),
        "roster": params.roster,
        "threshold": params.threshold,
    }


def described_step(params: AggregationParams, inputs, drops, result) -> dict[str, object]:
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


def aggregation() -> dict[str, object]:
    params = make_params(7, ("g", 5, 4), ("w", 3, 11), threshold=4, step=42)
    inputs = make_inputs(params, seed=1)
    sent: list[dict[str, object]] = []
    result = run_aggregation(
        inputs,
        params,
        drops=DropSchedule(DROPS),
        entropy=fixed_entropy(SEED),
        tap=recorder(sent),
    )
    return {
        **described(params),
        **described_step(params, inputs, DROPS, result),
        "off0": context.offline(params.batch).hex(),
        "messages": sent,
    }


def batch() -> dict[str, object]:
    """Three steps of different shapes; one client drops out and comes back."""
    sections = [[("g", 9, 2)], [("g", 1, 4), ("logits", 6, 16)], [("g", 4, 7)]]
    drops = [{}, {10: Phase.MASKED_INPUT, 16: Phase.UNMASKING}, {19: Phase.MASKED_INPUT}]
    sent: list[dict[str, object]] = []
    first = make_params(5, *sections[0], threshold=3)
    session = BatchSession(
        first.session, first.roster, 3, entropy=fixed_entropy(SEED), tap=recorder(sent)
    )
    session.prepare(3)
    steps = []
    for key in range(3):
        params = make_params(5, *sections[key], threshold=3, step=100 + key)
        inputs = make_inputs(params, seed=key)
        result = session.step(inputs, params.task, DropSchedule(drops[key]))
        steps.append(described_step(params, inputs, drops[key], result))
    return {**described(first), "batch": 0, "M": 3, "steps": steps, "messages": sent}


def malicious() -> dict[str, object]:
    """One signed step; client u signs with the Ed25519 seed that is u as 32 bytes, big-endian."""
    drops = {13: Phase.MASKED_INPUT, 22: Phase.CONSISTENCY}
    params = malicious_params(7, ("g", 5, 4), step=42)
    inputs = make_inputs(params, seed=1)
    sent: list[dict[str, object]] = []
    result = run_aggregation(
        inputs,
        params,
        drops=DropSchedule(drops),
        entropy=fixed_entropy(SEED),
        tap=recorder(sent),
        trust=Trust(signing_keys(params.roster)),
    )
    return {
        **described(params),
        **described_step(params, inputs, drops, result),
        "threat_model": params.threat_model,
        "identities": [identity.hex() for identity in params.identities],
        "off0": context.offline(params.batch).hex(),
        "messages": sent,
    }


def ring() -> dict[str, object]:
    """One step on a ring of degree 4; one client does not reveal its nonce, others drop later."""
    drops = {31: Phase.DRAW_GRAPH, 13: Phase.MASKED_INPUT, 22: Phase.UNMASKING}
    params = make_params(9, ("g", 5, 4), threshold=5, step=42, ring=Ring(4, 2))
    inputs = make_inputs(params, seed=1)
    sent: list[dict[str, object]] = []
    result = run_aggregation(
        inputs,
        params,
        drops=DropSchedule(drops),
        entropy=fixed_entropy(SEED),
        tap=recorder(sent),
    )
    return {
        **described(params),
        **described_step(params, inputs, drops, result),
        "ring": {"degree": 4, "threshold": 2},
        "off0": context.offline(params.batch).hex(),
        "messages": sent,
    }


class Bad:
    """Negative cases: an honest run of `make_params(5)` up to a message that must be refused."""

    def __init__(self) -> None:
        self.params = make_params(5)
        self.cases: list[dict[str, object]] = []

    def add(self, name: str, phase: Phase, receiver: str, data: bytes, error: type) -> None:
        case = {"phase": str(phase), "receiver": receiver, "bytes": data.hex()}
        self.cases.append({"name": f"bad_{name}", **case, "error": error.__name__})

    def bits(self, *members: int) -> bytes:
        return messages.encode_set(members, self.params.roster)

    def sent(self, phase: Phase, upto: Phase | None) -> bytes:
        return Run(self.params, upto).answer(13, phase)


def bad() -> dict[str, object]:
    b = Bad()
    _bad_uploads(b)
    _bad_downloads(b)
    return {"client": 13, "cases": b.cases}


def _bad_uploads(b: Bad) -> None:
    rounds = [None, *ROUNDS]
    for index, phase in enumerate(ROUNDS):
        good = b.sent(phase, rounds[index])
        b.add(f"{phase}_prefix", phase, "server", good[:-1], DecodeError)
        b.add(f"{phase}_extension", phase, "server", good + b"\0", DecodeError)
        version = good[:1] + bytes([good[1] + 0x10]) + good[2:]
        b.add(f"{phase}_version", phase, "server", version, DecodeError)
        long = b"\xdc\0" + bytes([good[0] & 15]) + good[1:]
        b.add(f"{phase}_long_header", phase, "server", long, DecodeError)
        later = messages.encode(UnmaskShares(1, (), ()))
        b.add(f"{phase}_later_step", phase, "server", later, RemoteProtocolError)
    low = Advertisement(bytes(32), (b"\x09" + bytes(31),), bytes(32))
    b.add("low_order_key", ROUNDS[0], "server", messages.encode(low), RemoteProtocolError)
    wide = messages.encode(MaskedInput(0, (b"\x7f" + bytes(4),)))
    b.add("element_not_below_p", ROUNDS[2], "server", wide, DecodeError)
    padded = messages.encode(MaskedInput(0, (bytes(4) + b"\x80",)))
    b.add("padding_not_zero", ROUNDS[2], "server", padded, DecodeError)
    short = messages.encode(UnmaskShares(0, (bytes(32),) * 4, ()))
    b.add("share_missing", ROUNDS[3], "server", short, RemoteProtocolError)
    element = messages.encode(UnmaskShares(0, (b"\xff" * 32,) * 5, ()))
    b.add("share_not_an_element", ROUNDS[3], "server", element, DecodeError)


def _bad_downloads(b: Bad) -> None:
    few = b.bits(10, 13, 16)
    others = b.bits(10, 16, 19, 22)
    everyone = b.bits(*b.params.roster)
    for name, active, key in [
        ("active_set_below_threshold", few, 0),
        ("active_set_without_recipient", others, 0),
        ("key_step_never_made", everyone, 1),
    ]:
        request = messages.encode(StepRequest(key, active))
        b.add(name, ROUNDS[2], "client", request, RemoteProtocolError)
    beyond = messages.encode(StepRequest(0, b"\xff"))
    b.add("bit_beyond_the_roster", ROUNDS[2], "client", beyond, DecodeError)
    for name, survivors in [("survivors_below_threshold", few), ("survivors_without_me", others)]:
        message = messages.encode(SurvivorSet(survivors))
        b.add(name, ROUNDS[3], "client", message, RemoteProtocolError)
    empty = messages.encode(KeyDirectory(everyone, ()))
    b.add("directory_without_keys", ROUNDS[1], "client", empty, RemoteProtocolError)


def expansion() -> dict[str, object]:
    key = bytes(range(32))
    cases = [
        {"bits": bits, "length": 40, "values": prg.expand(key, PrimeField(bits), 40).tolist()}
        for bits in (2, 4, 5, 8, 9, 15, 16, 20, 26, 32)
    ]
    derived = hkdf(key, "label", b"", b"a", b"bc").hex()
    return {"key": key.hex(), "hkdf_label_empty_a_bc": derived, "cases": cases}


def render(value: dict[str, object]) -> str:
    return json.dumps(value, indent=1) + "\n"


VECTORS = {
    "aggregation.json": aggregation,
    "bad.json": bad,
    "batch.json": batch,
    "expansion.json": expansion,
    "malicious.json": malicious,
    "ring.json": ring,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in VECTORS.items():
        (FOLDER / name).write_text(render(make()), encoding="utf-8")
