"""The audit's properties hold here, and each of them fails where it must.

`make test` runs them with few examples, `make audit` with many: one implementation, that of
`codream-secure audit protocol`.
"""

import time

import numpy as np
import pytest
from hypothesis import Phase, settings
from secagg_helpers import make_params

from protocols import messages
from protocols.audit import PropertyFailed, Subject, statistics
from protocols.audit import run as audits
from protocols.audit import strategies as some
from protocols.client.durable import DurableClient
from protocols.driver import AggregationResult, run_aggregation
from protocols.errors import (
    ConfigError,
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    SecAggError,
)
from protocols.messages import Message, StepRequest
from protocols.primitives import shamir
from protocols.primitives.packing import pack

EXAMPLES = settings.default.max_examples // 3


@pytest.mark.parametrize("check", audits.PROPERTIES, ids=lambda check: check.__name__)
def test_property(check):
    outcome = check(EXAMPLES, audits.OURS)
    assert outcome.examples >= 2
    assert outcome.checks >= outcome.examples


def test_every_property_says_what_it_checks_and_where_that_stands():
    for check in audits.PROPERTIES:
        first = check.__doc__.splitlines()[0]
        assert first.endswith(".")
        assert "Source: " in check.__doc__, check.__name__
    names = [check.__name__ for check in audits.PROPERTIES]
    assert len(set(names)) == len(names)


# Subjects that break one promise each, and the properties that must notice -----------------------


def off_by_one(inputs, params, **options) -> AggregationResult:
    result = run_aggregation(inputs, params, **options)
    totals = {name: total + (np.arange(total.size) == 0) for name, total in result.totals.items()}
    return AggregationResult(totals, result.survivors, result.bytes)


def partial_sum(inputs, params, **options) -> AggregationResult:
    """Gives the sum of whoever is left when the protocol aborts."""
    try:
        return run_aggregation(inputs, params, **options)
    except NotEnoughSurvivors:
        zeros = {s.name: np.zeros(s.length, np.uint32) for s in params.sections}
        return AggregationResult(zeros, (), {})


def talkative(inputs, params, *, entropy=None, **options) -> AggregationResult:
    """Says in its error what it drew."""
    drawn = []

    def listened(size):
        drawn.append(entropy(size))
        return drawn[-1]

    try:
        return run_aggregation(inputs, params, entropy=entropy and listened, **options)
    except NotEnoughSurvivors as error:
        error.args = (drawn[0].hex() if drawn else "",)
        raise


class Forgetful(DurableClient):
    """Masks again whatever it has answered: two masked inputs under one mask."""

    _before = None

    def masked_input(self, request, task, inputs):
        if self._before and self._answers.pop("masked_input", None):
            self._session._state = self._before
        self._before = self._session.state
        return super().masked_input(request, task, inputs)


class Unmasked(DurableClient):
    """Sends what it should mask."""

    def masked_input(self, request, task, inputs):
        reply = super().masked_input(request, task, inputs)
        if self._party.batch.malicious:
            return reply
        key = messages.decode(request, StepRequest, self._party.batch).key
        parts = zip(task.sections, task.fields(self._party.batch.n), strict=True)
        plain = tuple(pack(inputs[s.name].astype(np.uint32), f.bits) for s, f in parts)
        return reply._replace(message=messages.encode(messages.MaskedInput(key, plain)))


class Hasty(DurableClient):
    """Draws before it looks at the policy."""

    def __init__(self, party, entropy, record=None):
        self._entropy = entropy
        super().__init__(party, entropy, record)

    def masked_input(self, request, task, inputs):
        self._entropy(32)
        return super().masked_input(request, task, inputs)


class Crashing(DurableClient):
    """Lets another exception out."""

    def share_keys(self, directory):
        try:
            return super().share_keys(directory)
        except SecAggError as error:
            raise ValueError(str(error)) from None


# Whatever was forgotten shows first: its answer, its keys, or who was there.
_FORGOT = "different answers|spent keys|missed a step is active again"
BROKEN = {
    "exact_sum": (Subject(aggregate=off_by_one), "the sum"),
    "overflow": (Subject(aggregate=off_by_one), "not exact"),
    "below_threshold": (Subject(aggregate=partial_sum), "there is a sum"),
    "uniform_masks": (Subject(client=Unmasked), "chi-square"),
    "unlinkable_steps": (Subject(client=Unmasked), "the tester's algebra"),
    "policy_first": (Subject(client=Hasty), "randomness was drawn"),
    "substitution": (Subject(client=Crashing), "ValueError came out"),
    "lying_server": (Subject(client=Forgetful), _FORGOT),
    "semi_honest_gate": (Subject(client=Forgetful), _FORGOT),
}


@pytest.fixture
def no_shrinking(monkeypatch):
    """Find a falsifying example, and do not look for a shorter one."""
    real = some.profile
    monkeypatch.setattr(
        some, "profile", lambda examples: settings(real(examples), phases=[Phase.generate])
    )


@pytest.mark.usefixtures("no_shrinking")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_subject_fails(name):
    subject, saying = BROKEN[name]
    (check,) = (check for check in audits.PROPERTIES if check.__name__ == name)
    with pytest.raises(PropertyFailed, match=saying):
        check(400, subject)


def test_an_error_that_shows_a_secret_fails():
    with pytest.raises(PropertyFailed, match=r"aborted with|secret"):
        audits.below_threshold(20, Subject(aggregate=talkative))


def test_a_run_goes_on_after_a_failure_and_keeps_it_short(monkeypatch):
    monkeypatch.setattr(audits, "PROPERTIES", (audits.overflow, audits.packing))
    failed, held = audits.run(5, Subject(aggregate=off_by_one))
    assert failed.outcome is None
    assert "not exact" in failed.failure
    assert len(failed.failure) < 500
    assert "\n" not in failed.failure
    assert held.outcome.checks > 0
    assert held.failure == ""


# The statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [5, 13, 31, 61])
def test_uniform_values_pass(p):
    values = np.random.default_rng(0).integers(0, p, 45_000)
    assert min(statistics.uniform(values, p).values()) > 1e-4


@pytest.mark.parametrize(
    ("test", "spoil"),
    [
        ("chi-square", lambda v, p: np.where(np.arange(v.size) % 50, v, 0)),
        ("chi-square", lambda v, p: np.where(v == p - 1, 0, v)),  # the off-by-one of w1
        ("bit 3", lambda v, p: np.where(np.arange(v.size) % 20, v, 8)),
        ("complexity", lambda v, p: np.tile(v[:10_000], 5)[: v.size]),
    ],
)
def test_values_that_are_not_uniform_do_not_pass(test, spoil):
    values = np.random.default_rng(0).integers(0, 13, 45_000)
    assert statistics.uniform(spoil(values, 13), 13)[test] < statistics.ALARM


def test_the_chi_square_bound_is_one_of_the_tail():
    """Against the exact tail for 2 degrees of freedom, exp(-x/2)."""
    counts = np.array([4000, 4000, 4300])
    values = np.repeat(np.arange(3), counts)
    expected = values.size / 3
    statistic = ((counts - expected) ** 2 / expected).sum()
    bound = statistics.chi_square(values, 3)
    assert np.exp(-statistic / 2) < bound < 30 * np.exp(-statistic / 2)
    assert statistics.chi_square(np.arange(300) % 3, 3) == 1.0


@pytest.mark.parametrize("values", [np.zeros(299, int), np.full(300, 3), np.full(300, -1)])
def test_chi_square_refuses_what_it_cannot_judge(values):
    with pytest.raises(ConfigError):
        statistics.chi_square(values, 3)


@pytest.mark.parametrize(
    ("bits", "length"),
    [
        ([0] * 9, 0),
        ([0] * 8 + [1], 9),
        ([1] * 9, 1),
        ([1, 0] * 9, 2),
        ([1, 0, 0, 1, 0, 1, 1] * 4, 3),
    ],
)
def test_linear_complexity_of_known_sequences(bits, length):
    assert statistics.linear_complexity(np.array(bits)) == length


# Sharing, exhaustively in a toy field ------------------------------------------------------------


def test_in_a_toy_field_t_minus_one_shares_fit_every_secret_equally_often(monkeypatch):
    monkeypatch.setattr(shamir, "P", 11)
    counts: dict[tuple[int, int], set[int]] = {}
    for secret in range(11):
        seen: dict[tuple[int, int], int] = {}
        for a2 in range(11):
            for a1 in range(11):
                shares = shamir.split(secret.to_bytes(32, "big"), (a2, a1), (1, 2, 3))
                pair = int.from_bytes(shares[1], "big"), int.from_bytes(shares[3], "big")
                seen[pair] = seen.get(pair, 0) + 1
        assert len(seen) == 121
        for pair, count in seen.items():
            counts.setdefault(pair, set()).add(count)
    assert set(map(frozenset, counts.values())) == {frozenset({1})}


# Decoders: time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Message.__subclasses__(), ids=lambda kind: kind.__name__)
def test_the_longest_junk_is_refused_quickly(kind):
    """Megabytes that look like a message: within a second, on any machine that runs the tests."""
    large = make_params(3000, ("g", 10**6, 4))
    size = messages.max_size(kind, large.batch, large.task)
    for filler in (b"\x91", b"\xc4\x00", b"\xdc\xff\xff", b"\x00"):
        data = (b"\x93" + bytes([kind.__struct_config__.tag]) + filler * size)[:size]
        began = time.process_time()
        with pytest.raises(DecodeError):
            messages.decode(data, kind, large.batch, large.task)
        assert time.process_time() - began < 1


def test_records_that_are_not_utf8_or_nested_deeply_are_damaged():
    """Found by `fuzzing`: UnicodeDecodeError and RecursionError once came out."""
    party = next(iter(some.parties(some.make_batch(4, "semi-honest")).values()))
    start = b"\x84\xa4off0\xc4\0\xa6client\1\xa5state\x81\xa4type"
    for record in (
        start + b"\xa2\xff\xfe\xa7answers\x80",
        start + b"\xa5Start\xa7answers\x81\xa2\xff\xfe\xc0",
        b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0",
    ):
        with pytest.raises(LocalProtocolError, match="damaged"):
            DurableClient(party, some.seeded_entropy(b""), record)


def test_strategies_name_whoever_is_counted_and_how_often():
    assert some.named((10, 13, 16), np.array([1, 0, 2])) == [10, 16, 16]
