"""The bounds of every number that a user can give.

Each has both, so that nothing is computed with what floats or memory cannot hold. Settings of a
run, baselines and commands take their types from here. A site's policy has types of its own, which
are as wide as what the code allows, and the protocol has its limits in `protocols.params`.
"""

import math
from decimal import Decimal
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, inspect

from codream_secure.errors import UserError
from protocols.params import MAX_CLIENTS, MIN_CLIENTS

MANY = 10**7
LARGE = 1e6
Natural = Annotated[int, Meta(ge=0, le=MANY)]
Positive = Annotated[int, Meta(ge=1, le=MANY)]
Bits = Annotated[int, Meta(ge=1, le=16)]
Channels = Annotated[int, Meta(ge=1, le=4096)]
Pixels = Annotated[int, Meta(ge=1, le=1024)]
Weight = Annotated[float, Meta(ge=0, le=LARGE)]
Size = Annotated[float, Meta(gt=0, le=LARGE)]
StepSize = Annotated[float, Meta(gt=0, le=100)]
# Far from the smallest float32 numbers, whose rounding no clip bounds. Both together bound their
# product, which is the largest step of one example.
Clip = Annotated[float, Meta(ge=1e-4, le=1e4)]
PrivateStepSize = Annotated[float, Meta(ge=1e-6, le=100)]
Temperature = Annotated[float, Meta(ge=0.01, le=1000)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]  # of a running average: at 1 it would never move
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]

# Differential privacy. Memory of an accountant grows with epsilon; noise beyond a million times
# the clip leaves nothing of any sum.
Epsilon = Annotated[float, Meta(ge=1e-6, le=1000)]
Delta = Annotated[float, Meta(gt=0, lt=1)]
NoiseMultiplier = Annotated[float, Meta(ge=0.01, le=LARGE)]
Examples = Annotated[int, Meta(ge=1, le=10**12)]

# Protocol and deployment.
Roster = Annotated[int, Meta(ge=MIN_CLIENTS, le=MAX_CLIENTS)]
Client = Annotated[int, Meta(ge=0, le=MAX_CLIENTS - 1)]
Exponent = Annotated[int, Meta(ge=1, le=256)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86_400)]

# How often something is repeated by `compare` and `audit`.
Trials = Annotated[int, Meta(ge=1, le=5)]
Epochs = Annotated[int, Meta(ge=1, le=1000)]
Shadows = Annotated[int, Meta(ge=4, le=10_000)]
Cases = Annotated[int, Meta(ge=1, le=1_000_000)]

_WORDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def bounds_of(found: inspect.Type) -> str:
    """Return the range of a number in words; empty where there is none."""
    limits = {key: getattr(found, key, None) for key in _WORDS}
    if limits["ge"] is not None and limits["le"] is not None:
        return f"from {plain(limits['ge'])} to {plain(limits['le'])}"
    return " and ".join(f"{_WORDS[k]} {plain(v)}" for k, v in limits.items() if v is not None)


def plain(number: float) -> str:
    """Return a number without an exponent and without zeros that say nothing."""
    text = format(Decimal(str(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def checked(value: object, kind: type, allowed: Any, words: str) -> Any:  # noqa: ANN401
    """Return a value that a type allows; whole numbers become floats where floats are needed.

    Args:
        value: as the user gave it.
        kind: int, float, str or bool.
        allowed: the annotated type.
        words: what is allowed, for the refusal.

    Raises:
        ValueError: what the value must be.
    """
    if isinstance(value, float):
        value = float(value)  # numpy's too
    try:
        value = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ValueError(_KINDS[kind]) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number")
    try:
        return msgspec.convert(value, allowed)
    except msgspec.ValidationError:
        raise ValueError(words) from None


def check_fields(settings: object) -> None:
    """Refuse a frozen dataclass with a number out of the bounds of its field's type.

    Raises:
        UserError: which number, and what it must be.
    """
    for name, allowed in get_type_hints(type(settings), include_extras=True).items():
        found = inspect.type_info(allowed)
        if not isinstance(found, inspect.IntType | inspect.FloatType):
            continue
        kind, value = int if isinstance(found, inspect.IntType) else float, getattr(settings, name)
        try:
            object.__setattr__(settings, name, checked(value, kind, allowed, bounds_of(found)))
        except ValueError as error:
            raise UserError(f"{name} must be {error}, not {value!r}") from None
