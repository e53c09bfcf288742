"""The recorded bytes still come out, and a second, independent reading of SPEC.md agrees."""

import hashlib
import hmac
import json
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from gen_secagg_vectors import FOLDER, VECTORS, render
from secagg_helpers import ROUNDS, Run, fixed_entropy, make_params

from protocols import errors
from protocols.params import Phase

V = json.loads((FOLDER / "aggregation.json").read_text())
BATCH = json.loads((FOLDER / "batch.json").read_text())
SIGNED = json.loads((FOLDER / "malicious.json").read_text())
BAD = json.loads((FOLDER / "bad.json").read_text())


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_are_reproduced(name):
    assert render(VECTORS[name]()) == (FOLDER / name).read_text(encoding="utf-8")


def test_the_vector_is_the_sum_of_the_survivors():
    assert V["survivors"] == [10, 19, 22, 25, 28]
    for name, total in V["totals"].items():
        inputs = [V["inputs"][str(u)][name] for u in V["survivors"]]
        assert total == [sum(column) for column in zip(*inputs, strict=True)]


@pytest.mark.parametrize("step", BATCH["steps"], ids=lambda step: step["step"])
def test_every_step_of_the_batch_is_the_sum_of_its_survivors(step):
    for name, total in step["totals"].items():
        inputs = [step["inputs"][str(u)][name] for u in step["survivors"]]
        assert total == [sum(column) for column in zip(*inputs, strict=True)]


@pytest.mark.parametrize("case", BAD["cases"], ids=lambda case: case["name"])
def test_negative_vectors_fail_where_they_must(case):
    phase, data = Phase(case["phase"]), bytes.fromhex(case["bytes"])
    rounds = [None, *ROUNDS]
    run = Run(make_params(5), rounds[rounds.index(phase) - 1])
    if phase == Phase.MASKED_INPUT:
        run.begin()
    run.replies[BAD["client"]] = data
    server, me = case["receiver"] == "server", BAD["client"]
    with pytest.raises(getattr(errors, case["error"])):
        _ = run.server.receive(me, data) if server else run.answer(me, phase)


def test_signatures_and_proof_by_a_second_implementation():
    """Every upload of the malicious vector, its context computed from the messages alone."""
    sent = {(m["phase"], m["direction"], m["client"]): m["bytes"] for m in SIGNED["messages"]}
    sent = {place: bytes.fromhex(data) for place, data in sent.items()}
    roster = SIGNED["roster"]
    identities = [bytes.fromhex(identity) for identity in SIGNED["identities"]]
    members = b"".join(u64(u) + key for u, key in zip(roster, identities, strict=True))
    agreed = frame(b"malicious", b"complete", u64(SIGNED["threshold"]))
    off0 = digest(b"off", bytes.fromhex(SIGNED["session"]), u64(42), u64(1), agreed, members)
    assert off0.hex() == SIGNED["off0"]
    adverts = {u: sent["advertise_keys", "up", u] for u in roster}
    off1 = digest(b"off1", off0, *(frame(u64(u), data) for u, data in adverts.items()))
    section = frame(b"g", u64(5), u64(15), u64(7), u64(127), struct.pack(">d", 1.0))
    on = digest(
        b"on", off1, u64(0), u64(42), b"gradient", frame(section), b"\x7f",
        bytes.fromhex(SIGNED["broadcast_digest"]),
    )  # fmt: skip
    on_u3 = digest(b"survivors", on, bytes([0x7F - 2]))  # 13 is the second of the roster
    contexts = {
        "advertise_keys": off0, "share_keys": off1, "masked_input": on,
        "consistency": on_u3, "unmasking": on_u3,
    }  # fmt: skip
    checked = 0
    for (phase, direction, u), data in sent.items():
        if direction == "up":
            assert data[:2] == b"\x93\x1b"
            signature = data[-64:]
            assert data[-66:-64] == b"\xc4\x40"
            header = {0xC4: 2, 0xC5: 3}[data[2]]
            body = data[2 + header : -66]
            statement = digest(b"signed", contexts[phase], u64(u), body)
            identity = Ed25519PublicKey.from_public_bytes(identities[roster.index(u)])
            identity.verify(signature, statement)
            checked += 1
    assert checked == 7 + 7 + 6 + 5 + 5
    assert SIGNED["survivors"] == [10, 16, 19, 22, 25, 28]


# A masked input computed from SPEC.md with the standard library, X25519 and AES only.


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def frame(*items: bytes) -> bytes:
    return b"".join(len(item).to_bytes(4, "big") + item for item in items)


VERSION = b"codream-secure/secagg/1"


def digest(*items: bytes) -> bytes:
    return hashlib.sha256(frame(VERSION, *items)).digest()


def derive(secret: bytes, *items: bytes) -> bytes:
    prk = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(prk, frame(VERSION, *items) + b"\1", "sha256")


def expand(key: bytes, p: int, width: int, length: int) -> list[int]:
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(9999))
    words = [int.from_bytes(stream[i : i + width], "little") for i in range(0, 9996, width)]
    limit = 2 ** (8 * width) // p * p
    spare = (word for word in words[length:] if word < limit)
    return [(word if word < limit else next(spare)) % p for word in words[:length]]


def uploads(phase: str) -> dict[int, bytes]:
    return {
        m["client"]: bytes.fromhex(m["bytes"])
        for m in V["messages"]
        if (m["phase"], m["direction"]) == (phase, "up")
    }


def test_masked_input_by_a_second_implementation():
    me, roster, t = 19, V["roster"], V["threshold"]
    entropy = fixed_entropy(bytes.fromhex(V["seed"]))
    round0 = {u: (entropy(32), entropy(32), entropy(32)) for u in roster}
    u1 = list(uploads("advertise_keys"))
    u2 = list(uploads("share_keys"))
    assert (u1, u2) == (roster, [u for u in roster if u != 13])
    self_seeds = {u: self_seed for u, (_, _, self_seed) in round0.items()}
    off0 = digest(
        b"off", bytes.fromhex(V["session"]), u64(V["step"]), u64(1),
        frame(b"semi-honest", b"complete", u64(t)), b"".join(map(u64, roster)),
    )  # fmt: skip
    assert off0.hex() == V["off0"]
    mask_private = {
        u: X25519PrivateKey.from_private_bytes(derive(seed, b"mask key", u64(u), u64(0), off0))
        for u, (_, seed, _) in round0.items()
    }
    sent = uploads("advertise_keys")
    advertised = {u: (data[4:36], data[39:71]) for u, data in sent.items()}
    for u, (channel, mask) in advertised.items():
        assert mask_private[u].public_key().public_bytes_raw() == mask
        private = X25519PrivateKey.from_private_bytes(round0[u][0])
        assert private.public_key().public_bytes_raw() == channel
    for u, (_, *seeds) in round0.items():
        kinds = zip((b"mask key", b"self mask"), seeds, strict=True)
        leaves = [digest(b"commitment", off0, u64(u), u64(0), kind, seed) for kind, seed in kinds]
        assert sent[u][73:] == digest(b"commitments", *leaves)
    off1 = digest(b"off1", off0, *(frame(u64(u), data) for u, data in sent.items()))
    fields = {"g": (7, 127, 1), "w": (14, 16381, 2)}
    sections = frame(
        *(
            frame(
                s["name"].encode(), u64(s["length"]), u64(s["maximum"]),
                u64(fields[s["name"]][0]), u64(fields[s["name"]][1]), struct.pack(">d", s["clip"]),
            )
            for s in V["sections"]
        )
    )  # fmt: skip
    active = sum(1 << i for i, u in enumerate(roster) if u in u2).to_bytes(1, "little")
    on = digest(
        b"on", off1, u64(0), u64(V["step"]), V["kind"].encode(), sections, active,
        bytes.fromhex(V["broadcast_digest"]),
    )  # fmt: skip
    keys = [(1, derive(self_seeds[me], b"self", u64(me), on))]
    for v in u2:
        if v != me:
            shared = mask_private[me].exchange(X25519PublicKey.from_public_bytes(advertised[v][1]))
            low, high = min(me, v), max(me, v)
            keys.append((1 if me > v else -1, derive(shared, b"pair", u64(low), u64(high), on)))
    encoded = b""
    for index, s in enumerate(V["sections"]):
        bits, p, width = fields[s["name"]]
        y = list(V["inputs"][str(me)][s["name"]])
        for sign, key in keys:
            mask = expand(derive(key, b"section", u64(index), s["name"].encode()), p, width, len(y))
            y = [(a + sign * m) % p for a, m in zip(y, mask, strict=True)]
        stream = sum(value << (bits * i) for i, value in enumerate(y))
        packed = stream.to_bytes((bits * len(y) + 7) // 8, "little")
        encoded += bytes([0xC4, len(packed)]) + packed
    assert uploads("masked_input")[me] == b"\x93\x14\x00\x92" + encoded
