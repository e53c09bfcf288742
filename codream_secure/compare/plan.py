"""What is compared: methods, seeds, settings, and what all may spend equally."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.methods import Method, parse_method
from codream_secure.config import Config
from codream_secure.errors import UserError
from codream_secure.resolve import FAST_ONLY, PIXELS_ONLY, inapplicable, resolve

Match = Literal["rounds", "iterations", "seconds", "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared.

    Args:
        methods: their names (`baselines.methods`).
        seeds: of the runs.
        options: settings of `simulate`, by flat name.
        settings: of the baselines.
        match: what methods may spend equally.
        trials: step sizes tried on validation, each at a quarter of the rounds; 1: none.
        target: accuracy at which bytes are read off; None: none.

    Raises:
        UserError: unknown or repeated methods, or settings that none of them has a use for.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, object]
    settings: BaselineSettings
    match: Match = "iterations"
    trials: int = 1
    target: float | None = None

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise UserError("--methods must name every method once, and at least one")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError("--seeds must name every seed once, and at least one")
        useless: set[str] | None = None
        for name in self.methods:
            unused = self._unused(parse_method(name))
            useless = unused if useless is None else useless & unused
        if useless:
            option = "--" + min(useless).replace("_", "-")
            raise UserError(f"{option} means nothing to any of {', '.join(self.methods)}")

    def config(self, method: Method, seed: int) -> Config:
        """Return the resolved settings of one cell."""
        return resolve(Config.from_options(self._options(method, seed)))

    def _options(self, method: Method, seed: int) -> dict[str, object]:
        unused = self._unused(method)
        options = {name: value for name, value in self.options.items() if name not in unused}
        return options | _of(method) | {"seed": seed}

    def _unused(self, method: Method) -> set[str]:
        """Return the given settings that do not apply to a method but may to another."""
        dreams = {"method": method.family} if method.family == "codream-fast" else {}
        asked = Config.from_options({**self.options, **dreams})
        return set(inapplicable(asked)) & set(self.options) & {*FAST_ONLY, *PIXELS_ONLY}

    @property
    def reference(self) -> str:
        """The method whose cost the others may spend."""
        dreaming = [name for name in self.methods if parse_method(name).dreams]
        return (dreaming or list(self.methods))[0]

    def state(self) -> dict[str, Any]:
        """Return the plan in JSON's own types."""
        plan = dataclasses.asdict(self)
        return {**plan, "methods": list(self.methods), "seeds": list(self.seeds)}


def _of(method: Method) -> dict[str, object]:
    """Return what a method's name says of the settings."""
    if method.family == "fedmd":
        # Public noise that is labelled and learned from: dreams without dreaming.
        return {"method": "codream", "dream_steps": 0, "adaptive": "none"}
    return {"method": method.family} if method.dreams else {"method": "codream"}


def as_match(name: str) -> Match:
    """Return what a word on the command line says."""
    return next(kind for kind in get_args(Match) if kind == name)
