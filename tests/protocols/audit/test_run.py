"""The audit's properties hold, and a broken subject fails them."""

import numpy as np
import pytest
from hypothesis import Phase, settings

from protocols import messages
from protocols.audit import PropertyFailed, Subject
from protocols.audit import run as audits
from protocols.audit import strategies as some
from protocols.client.durable import DurableClient
from protocols.driver import AggregationResult, run_aggregation
from protocols.errors import (
    NotEnoughSurvivors,
    SecAggError,
)
from protocols.messages import StepRequest
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
