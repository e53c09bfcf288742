"""Properties of whole aggregations: the exact sum of exactly the survivors, or no sum."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome
from protocols.audit.subject import Subject
from protocols.errors import ConfigError, NotEnoughSurvivors
from protocols.params import MAX_CLIENTS, MAX_INPUT, Task
from protocols.phases import DropSchedule, Phase, round_phases
from protocols.primitives.field import MAX_BITS, MIN_BITS, PrimeField


def exact_sum(examples: int, subject: Subject) -> Outcome:
    """With random dropouts in every round the result is exactly the sum of U3, in both models.

    Inputs of one section are one-hot, so its sum names the clients in it: a client that is missing,
    foreign or counted twice shows at once.
    Source: SPEC 6.4, Bonawitz et al. 2017 theorem 6.1; faults w5, w6, w8, f6.
    """
    checks = Checks()

    def check(data: DataObject) -> None:
        model = data.draw(st.sampled_from(some.MODELS))
        case = data.draw(some.cases(model))
        spare = case.params.n - case.params.threshold
        drops = data.draw(some.drop_schedules(case, round_phases(model), spare))
        result = subject.aggregate(
            case.inputs, case.params, drops=drops, credentials=case.credentials
        )
        survivors = tuple(u for u in case.params.roster if not drops.silent(u, Phase.MASKED_INPUT))
        totals = {name: total.tolist() for name, total in result.totals.items()}
        checks.that(result.survivors == survivors, "other survivors than those that sent")
        who = some.named(case.params.roster, result.totals[some.WHO])
        checks.that(who == list(survivors), f"the sum names {who}, not {list(survivors)}")
        checks.that(totals == case.expected(survivors), "the sum is not exact")

    return Outcome(some.explore(examples, check), checks.made)


def below_threshold(examples: int, subject: Subject) -> Outcome:
    """With fewer than t clients in a phase the run aborts there, without even a partial sum.

    The error names the phase and two numbers. Its text holds no secret that was drawn.
    Source: SPEC 6, 6.6; fault w12 (a sum over fewer clients than agreed).
    """
    checks = Checks()

    def check(data: DataObject) -> None:
        model = data.draw(st.sampled_from(some.MODELS))
        case = data.draw(some.cases(model))
        params = case.params
        phase = data.draw(st.sampled_from(round_phases(model)))
        alive = data.draw(st.integers(0, params.threshold - 1))
        gone = data.draw(st.permutations(params.roster))[alive:]
        drops = DropSchedule(dict.fromkeys(gone, phase))
        drawn: list[bytes] = []
        source = some.seeded_entropy(data.draw(some.seeds))

        def entropy(size: int) -> bytes:
            drawn.append(source(size))
            return drawn[-1]

        try:
            subject.aggregate(
                case.inputs, params, drops=drops, credentials=case.credentials, entropy=entropy
            )
        except NotEnoughSurvivors as error:
            found = error.phase, error.alive, error.needed
            checks.that(found == (phase, alive, params.threshold), f"aborted with {error}")
            text = repr(vars(error)) + str(error)
            leaked = any(s.hex() in text or repr(s)[2:-1] in text for s in drawn)
            checks.that(not leaked, "the error shows a secret")
        else:
            checks.that(holds=False, failure=f"{alive} clients left at {phase}, and there is a sum")

    return Outcome(some.explore(examples, check), checks.made)


def overflow(examples: int, subject: Subject) -> Outcome:
    """Inputs at their maximum never wrap, and one client above the capacity is refused.

    The field is the smallest one whose prime exceeds n·max; a power of two near n·max could wrap.
    Source: SPEC 2.3, D21; fault w9 (int32 levels, a guard that only warns).
    """
    checks = Checks()
    capacity = PrimeField(MAX_BITS).p - 1
    maximum = st.integers(1, MAX_INPUT) | st.sampled_from([1, 2**22, MAX_INPUT - 1, MAX_INPUT])

    def check(data: DataObject) -> None:
        top, n = data.draw(maximum), data.draw(st.integers(1, MAX_CLIENTS))
        if n * top <= capacity:
            field = PrimeField.for_sum(n, top)
            checks.that(field.p > n * top, f"p = {field.p} does not hold {n * top}")
            smaller = field.bits > MIN_BITS and PrimeField(field.bits - 1).p > n * top
            checks.that(not smaller, "a smaller field would do")
        task = some.make_task(some.section("x", 3, top))
        most = capacity // top
        checks.that(task.fields(most)[0].p > most * top, "the sum wraps at the capacity")
        checks.refused(f"n = {most + 1}, up to {top}", ConfigError, task.fields, most + 1)
        _at_the_top(subject, checks, task)

    return Outcome(some.explore(examples, check), checks.made)


def _at_the_top(subject: Subject, checks: Checks, task: Task) -> None:
    """Check the sum of four clients whose inputs are all at the maximum."""
    batch, top = some.make_batch(4, "semi-honest"), task.sections[0].maximum
    x = {"x": np.full(3, top, dtype=np.uint32)}
    result = subject.aggregate(dict.fromkeys(batch.roster, x), some.params_of(batch, task))
    checks.that(result.totals["x"].tolist() == [4 * top] * 3, f"{top} at the top: not exact")
