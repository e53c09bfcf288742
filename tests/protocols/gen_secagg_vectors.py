"""Write vectors/*.json anew. A change of any value is a change of the protocol: see SPEC.md.

Run from the repository root: python tests/protocols/gen_secagg_vectors.py
"""

import json
from pathlib import Path

from secagg_helpers import fixed_entropy, make_inputs, make_params

from protocols import context, prg
from protocols.driver import DropSchedule, run_aggregation
from protocols.field import PrimeField
from protocols.keys import hkdf
from protocols.params import Phase

FOLDER = Path(__file__).parent / "vectors"
SEED = b"vector 1"
DROPS = {13: Phase.SHARE_KEYS, 16: Phase.MASKED_INPUT, 22: Phase.UNMASKING}


def aggregation() -> dict[str, object]:
    params = make_params(7, ("g", 5, 4), ("w", 3, 11), threshold=4, step=42)
    inputs = make_inputs(params, seed=1)
    sent: list[dict[str, object]] = []
    result = run_aggregation(
        inputs,
        params,
        drops=DropSchedule(DROPS),
        entropy=fixed_entropy(SEED),
        tap=lambda phase, direction, u, data: sent.append(
            {"phase": str(phase), "direction": direction, "client": u, "bytes": data.hex()}
        ),
    )
    return {
        "entropy": "SHA-256(seed || u64 counter), counter from 0, shared by all clients in order",
        "seed": SEED.hex(),
        "session": params.session.hex(),
        "step": params.step,
        "kind": params.kind,
        "roster": params.roster,
        "threshold": params.threshold,
        "broadcast_digest": params.broadcast_digest.hex(),
        "sections": [
            {"name": s.name, "length": s.length, "bits": s.bits, "clip": s.clip}
            for s in params.sections
        ],
        "off0": context.offline(params).hex(),
        "inputs": {str(u): {k: v.tolist() for k, v in x.items()} for u, x in inputs.items()},
        "drops": {str(u): str(phase) for u, phase in DROPS.items()},
        "messages": sent,
        "survivors": result.survivors,
        "totals": {name: total.tolist() for name, total in result.totals.items()},
    }


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


VECTORS = {"aggregation.json": aggregation, "expansion.json": expansion}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in VECTORS.items():
        (FOLDER / name).write_text(render(make()), encoding="utf-8")
