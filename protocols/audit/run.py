"""The list of properties, and a run of all of them; needs the extra `audit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from protocols.audit.checks import Outcome
from protocols.audit.chosen import chosen_graph
from protocols.audit.decoders import codec, fuzzing
from protocols.audit.hostile import hostile_clients
from protocols.audit.lies import policy_first, substitution
from protocols.audit.lost import lost_pairs
from protocols.audit.machine import lying_server, semi_honest_gate
from protocols.audit.masks import mask_keys, uniform_masks, unlinkable_steps
from protocols.audit.parts import packing, quantizer, sharing
from protocols.audit.subject import Subject
from protocols.audit.sums import below_threshold, exact_sum, overflow

Property = Callable[[int, Subject], Outcome]
"""Takes the number of examples and the subject; raises if the property does not hold."""

PROPERTIES: tuple[Property, ...] = (
    exact_sum,
    below_threshold,
    overflow,
    uniform_masks,
    unlinkable_steps,
    mask_keys,
    sharing,
    quantizer,
    packing,
    codec,
    fuzzing,
    policy_first,
    substitution,
    hostile_clients,
    lost_pairs,
    chosen_graph,
    lying_server,
    semi_honest_gate,
)

OURS = Subject()
"""This package as it is."""

_SHOWN = 400  # characters of a falsifying example


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one property.

    Attributes:
        name: of the property's function.
        claim: the first line of its docstring.
        outcome: how much was checked, if the property holds; else None.
        failure: the failed condition and a short falsifying example, if it does not.
    """

    name: str
    claim: str
    outcome: Outcome | None
    failure: str = ""


def run(examples: int, subject: Subject = OURS) -> Iterator[Result]:
    """Check one property after the other; a failure does not stop the run.

    Args:
        examples: how many cases most properties try; those with long cases try fewer.
        subject: what is audited.

    Yields:
        One result per property, as soon as it is known.
    """
    for check in PROPERTIES:
        name, claim = check.__name__, (check.__doc__ or "").partition("\n")[0]
        try:
            outcome = check(examples, subject)
        except Exception as error:  # noqa: BLE001 - whatever an audited client raises is a finding
            yield Result(name, claim, None, describe(error))
        else:
            yield Result(name, claim, outcome)


def describe(error: Exception) -> str:
    """Return one short line about a failure: what does not hold, and in which example."""
    words = " ".join(str(error).split())
    lines = "\n".join(getattr(error, "__notes__", ())).splitlines()
    # The invariants of a state machine stand between all of its steps.
    notes = " ".join(" ".join(line.split()) for line in lines if "state.always_" not in line)
    text = f"{type(error).__name__}: {words} | {notes}" if notes else words
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
