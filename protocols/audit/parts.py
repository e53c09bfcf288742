"""Properties of the building blocks: secret sharing, quantizer, packing."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from protocols.audit import statistics
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome
from protocols.audit.subject import Subject
from protocols.errors import ConfigError, CryptoError, DecodeError
from protocols.params import MAX_INPUT
from protocols.primitives import shamir
from protocols.primitives.field import MAX_BITS, MIN_BITS
from protocols.primitives.packing import pack, packed_size, unpack
from protocols.quantization import Quantizer
from protocols.seeds import Kind, SeedSlot

ROUNDINGS = 4_000
_OFF0 = bytes(32)


def sharing(examples: int, subject: Subject) -> Outcome:
    """Any t shares rebuild a seed, t - 1 fit every secret, and bad points are refused.

    For t - 1 shares and any guess of the secret exactly one t-th share gives that guess. The search
    names wrong shares. Another owner, step or kind gives another polynomial.
    Source: SPEC 3.6, 3.7, Shamir 1979; faults w8, f4, l1.
    """
    del subject
    checks = Checks()
    element = st.integers(0, shamir.P - 1).map(_encoded)

    def check(data: DataObject) -> None:
        n = data.draw(st.integers(2, 12))
        t = data.draw(st.integers(2, n))
        seed, guess = data.draw(element), data.draw(element)
        slot = SeedSlot(_OFF0, data.draw(st.integers(0, 9)), 0, Kind.SELF_MASK)
        shares = slot.split(seed, t, range(1, n + 1))
        chosen = data.draw(st.permutations(sorted(shares)))[:t]
        rebuilt = shamir.reconstruct({x: shares[x] for x in chosen}, t)
        checks.that(rebuilt == seed, f"{t} of {n} shares do not rebuild the seed")
        missing = _completion({x: shares[x] for x in chosen[1:]}, chosen[0], guess)
        fits = shamir.reconstruct({**{x: shares[x] for x in chosen[1:]}, chosen[0]: missing}, t)
        checks.that(fits == guess, "t - 1 shares rule a secret out")
        checks.that((missing == shares[chosen[0]]) == (guess == seed), "two shares give one secret")
        _check_slots(checks, slot, seed, t, n)
        _check_wrong_share(checks, data, slot, (seed, shares, t))
        _check_points(checks, seed, t, n)

    return Outcome(some.explore(examples, check), checks.made)


def _encoded(value: int) -> bytes:
    return value.to_bytes(shamir.SIZE, "big")


def _completion(known: dict[int, bytes], x: int, secret: bytes) -> bytes:
    """Return the share at x that gives this secret together with the known shares.

    The secret is sum(weight * share); this solves it for one share.
    """
    xs = tuple(sorted([*known, x]))
    weights = dict(zip(xs, shamir.lagrange_at_zero(xs), strict=True))
    rest = sum(weights[v] * int.from_bytes(share, "big") for v, share in known.items())
    value = (int.from_bytes(secret, "big") - rest) * pow(weights[x], -1, shamir.P) % shamir.P
    return _encoded(value)


def _check_slots(checks: Checks, slot: SeedSlot, seed: bytes, t: int, n: int) -> None:
    others = [
        SeedSlot(b"o" * 32, slot.client, slot.key, slot.kind),
        SeedSlot(_OFF0, slot.client + 1, slot.key, slot.kind),
        SeedSlot(_OFF0, slot.client, slot.key + 1, slot.kind),
        SeedSlot(_OFF0, slot.client, slot.key, Kind.MASK_KEY),
    ]
    commitments = {other.commit(seed) for other in (slot, *others)}
    polynomials = {
        tuple(other.split(seed, t, range(1, n + 1)).values()) for other in (slot, *others)
    }
    checks.that(len(commitments) == len(others) + 1, "two slots share a commitment")
    checks.that(len(polynomials) == len(others) + 1, "two slots share a polynomial")


def _check_wrong_share(
    checks: Checks, data: DataObject, slot: SeedSlot, shared: tuple[bytes, dict[int, bytes], int]
) -> None:
    seed, shares, t = shared
    liar = data.draw(st.sampled_from(sorted(shares)))
    flipped = int.from_bytes(shares[liar], "big") ^ 1 << data.draw(st.integers(0, 254))
    given = {**shares, liar: _encoded(flipped % shamir.P)}
    commitment = slot.commit(seed)
    if len(shares) == t:
        what = "a wrong share among t"
        checks.refused(what, CryptoError, slot.recover, given, t, commitment)
        return
    found, wrong = slot.recover(given, t, commitment)
    used = sorted(shares)[:t]
    checks.that(found == seed, "a wrong share changed the seed")
    checks.that(wrong == ({liar} if liar in used else set()), "the wrong share is not named")


def _check_points(checks: Checks, seed: bytes, t: int, n: int) -> None:
    rest = [1] * (t - 1)
    for what, points in {
        "x = 0": (0, *range(1, n + 1)),
        "a repeated x": (1, *range(1, n + 1)),
        "x = P": (*range(1, n + 1), shamir.P),
        "too few points": tuple(range(1, t)),
    }.items():
        checks.refused(what, ConfigError, shamir.split, seed, rest, points)
    zero = dict.fromkeys(range(t), seed)
    checks.refused("a share at x = 0", ConfigError, shamir.reconstruct, zero, t)
    for bad in (_encoded(shamir.P), b"\xff" * 32, seed[:-1], seed + b"\0"):
        checks.refused("no element", DecodeError, shamir.decode_element, bad)


def quantizer(examples: int, subject: Subject) -> Outcome:
    """Decoded sums are unbiased and within the stated bound; NaN counts as 0, infinity as clip.

    The test of the bias uses Hoeffding's inequality on 4,000 roundings of one value.
    Source: SPEC 7.1, 7.2; faults w9, w10 (noise from the global generator).
    """
    del subject
    checks = Checks()

    def check(data: DataObject) -> None:
        coder = Quantizer(data.draw(st.integers(1, MAX_INPUT)), data.draw(st.floats(1e-4, 1e4)))
        seed, step = data.draw(some.seeds) * 4, data.draw(st.integers(0, 2**64 - 1))
        x = data.draw(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=9))
        code = coder.encode(np.array(x), seed=seed, step=step, section="x")
        checks.that(int(code.max()) <= coder.levels, "a code above the largest level")
        error = np.abs(coder.decode_sum(code, 1) - np.clip(x, -coder.clip, coder.clip))
        slack = 1e-9 * coder.clip
        checks.that(float(error.max()) <= coder.resolution + slack, "error above the resolution")
        value = float(np.clip(x[0], -coder.clip, coder.clip))
        many = coder.encode(np.full(ROUNDINGS, value), seed=seed, step=step ^ 1, section="x")
        bias = abs(float(coder.decode_sum(many, 1).mean()) - value)
        # A value is rounded to two neighbouring levels, so each rounding lies in an interval of
        # one resolution. Hoeffding: P(bias > b) <= 2 exp(-2 N b^2 / resolution^2), solved for b.
        bound = math.sqrt(-math.log(statistics.ALARM / 2) / (2 * ROUNDINGS)) * coder.resolution
        checks.that(bias <= bound + slack, f"biased by {bias / coder.resolution:.3f} resolutions")
        again = coder.encode(np.array(x), seed=seed, step=step, section="x")
        checks.that(np.array_equal(code, again), "rounding depends on more than its arguments")
        broken = np.array([*x, math.nan, math.inf, -math.inf])
        repaired = np.array([*x, 0.0, coder.clip, -coder.clip])
        found = coder.encode(broken, seed=seed, step=step, section="x")
        wanted = coder.encode(repaired, seed=seed, step=step, section="x")
        checks.that(np.array_equal(found, wanted), "NaN is not 0, or infinity not the clip")

    return Outcome(some.explore(examples, check), checks.made)


def packing(examples: int, subject: Subject) -> Outcome:
    """For b from 2 to 32 `pack` gives the specified stream, and `unpack` inverts it strictly.

    Source: SPEC 5.3.
    """
    del subject
    checks = Checks()

    def check(data: DataObject) -> None:
        length, seed = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 2**32 - 1))
        generator = np.random.default_rng(seed)
        for bits in range(MIN_BITS, MAX_BITS + 1):
            values = generator.integers(0, 1 << bits, length, dtype=np.uint32)
            values[0] = (1 << bits) - 1
            packed = pack(values, bits)
            stream = sum(v << i * bits for i, v in enumerate(values.tolist()))
            size = (length * bits + 7) // 8
            same = packed == stream.to_bytes(size, "little")
            checks.that(same and packed_size(length, bits) == size, f"b = {bits}: another stream")
            back = unpack(packed, bits, length)
            checks.that(np.array_equal(back, values), f"b = {bits}: not the inverse")
            for wrong in (packed[:-1], packed + b"\0"):
                what = f"b = {bits}, wrong size"
                checks.refused(what, DecodeError, unpack, wrong, bits, length)
            for bit in range(length * bits % 8 or 8, 8):
                padded = packed[:-1] + bytes([packed[-1] | 1 << bit])
                what = f"b = {bits}, padding"
                checks.refused(what, DecodeError, unpack, padded, bits, length)

    return Outcome(some.explore(_few(examples), check), checks.made)


def _few(examples: int) -> int:
    """Return the number of examples; each goes through all 31 widths."""
    return max(examples // 5, 5)
