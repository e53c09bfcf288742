"""What the command line and readers of TOML need to know of each option."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect

from codream_secure.config.aliases import option
from codream_secure.config.concerns import (
    DataConfig,
    DreamConfig,
    LearningConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    SecureConfig,
)
from codream_secure.errors import UserError

CONCERNS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "data": DataConfig,
        "model": ModelConfig,
        "dream": DreamConfig,
        "learning": LearningConfig,
        "secure": SecureConfig,
        "privacy": PrivacyConfig,
        "run": RunConfig,
    }
)
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One option.

    Attributes:
        name: with underscores.
        concern: the part of `Config` that it belongs to.
        kind: int, float, str or bool.
        choices: the words that are allowed; empty where any value of the kind may be.
        default: of the field; None where a rule fills it in or where nothing is chosen.
        help: one line for ``--help``.
        bounds: the range that is allowed, in words; empty where there is none.
        type: the annotated type of the field.
    """

    name: str
    concern: str
    kind: type
    choices: tuple[str, ...]
    default: object
    help: str
    bounds: str
    type: Any

    def checked(self, value: object) -> object:
        """Return a value that this option may have; whole numbers become floats where needed.

        Raises:
            UserError: the value has the wrong type or is out of range.
        """
        if isinstance(value, float):
            value = float(value)  # numpy's too
        try:
            value = msgspec.convert(value, self.kind)
        except msgspec.ValidationError:
            raise self._refusal(_KINDS[self.kind], value) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self._refusal("a finite number", value)
        try:
            return msgspec.convert(value, self.type)
        except msgspec.ValidationError:
            words = self.bounds or f"one of {', '.join(self.choices)}"
            raise self._refusal(words, value) from None

    def _refusal(self, allowed: str, value: object) -> UserError:
        return UserError(f"{option(self.name)} must be {allowed}, not {value!r}")


@cache
def settings() -> tuple[Setting, ...]:
    """Return all options, in the order of the dataclasses."""
    return tuple(
        _setting(concern, item.name, item.default, hints[item.name])
        for concern, cls in CONCERNS.items()
        for hints in [get_type_hints(cls, include_extras=True)]
        for item in fields(cls)
    )


def _setting(concern: str, name: str, default: object, hint: Any) -> Setting:  # noqa: ANN401
    told, found = _described(inspect.type_info(hint))
    choices = tuple(map(str, found.values)) if isinstance(found, inspect.LiteralType) else ()
    kinds = {inspect.IntType: int, inspect.FloatType: float, inspect.BoolType: bool}
    kind = kinds.get(type(found), str)
    return Setting(name, concern, kind, choices, default, told, _bounds(found), hint)


def _described(found: inspect.Type) -> tuple[str, inspect.Type]:
    """Return the help text of an annotated type, and the type without None."""
    if not isinstance(found, inspect.Metadata) or found.extra_json_schema is None:
        raise TypeError("an option without a help text")
    inner = found.type
    if isinstance(inner, inspect.UnionType):
        inner = next(one for one in inner.types if not isinstance(one, inspect.NoneType))
    return found.extra_json_schema["description"], inner


def _bounds(found: inspect.Type) -> str:
    """Return the range of a number in words."""
    limits = {key: getattr(found, key, None) for key in _BOUNDS}
    if limits["ge"] is not None and limits["le"] is not None:
        return f"from {limits['ge']:g} to {limits['le']:g}"
    return " and ".join(f"{_BOUNDS[k]} {v:g}" for k, v in limits.items() if v is not None)
