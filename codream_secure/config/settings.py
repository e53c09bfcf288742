"""All settings of a run as the user chose them; each option; defaults that depend on others."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from types import MappingProxyType
from typing import Any, get_type_hints

from msgspec import inspect

from codream_secure.config.aliases import current_names, near, option
from codream_secure.config.bounds import bounds_of, checked
from codream_secure.config.concerns import (
    DataConfig,
    DreamConfig,
    LearningConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    SecureConfig,
)
from codream_secure.config.messenger import MessengerConfig
from codream_secure.errors import UserError
from codream_secure.models.names import MODEL_NAMES, WITHOUT_NORM

CONCERNS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "data": DataConfig,
        "model": ModelConfig,
        "dream": DreamConfig,
        "learning": LearningConfig,
        "messenger": MessengerConfig,
        "secure": SecureConfig,
        "privacy": PrivacyConfig,
        "run": RunConfig,
    }
)


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
        words = self.bounds or f"one of {', '.join(self.choices)}"
        try:
            return checked(value, self.kind, self.type, words)
        except ValueError as error:
            raise UserError(f"{option(self.name)} must be {error}, not {value!r}") from None


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
    return Setting(name, concern, kind, choices, default, told, bounds_of(found), hint)


def _described(found: inspect.Type) -> tuple[str, inspect.Type]:
    """Return the help text of an annotated type, and the type without None."""
    if not isinstance(found, inspect.Metadata) or found.extra_json_schema is None:
        raise TypeError("an option without a help text")
    inner = found.type
    if isinstance(inner, inspect.UnionType):
        inner = next(one for one in inner.types if not isinstance(one, inspect.NoneType))
    return found.extra_json_schema["description"], inner


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a run; `codream_secure.config.rules.resolve` fills in the open ones."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dream: DreamConfig = field(default_factory=DreamConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    messenger: MessengerConfig = field(default_factory=MessengerConfig)
    secure: SecureConfig = field(default_factory=SecureConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @staticmethod
    def from_options(options: Mapping[str, object]) -> "Config":
        """Build a configuration from flat names with underscores.

        Args:
            options: values by name; None stands for "not given". Old names
                (`codream_secure.config.aliases`) stand for the current ones.

        Raises:
            UserError: unknown name, wrong type, value out of range.
        """
        known = {setting.name: setting for setting in settings()}
        values: dict[str, dict[str, Any]] = {concern: {} for concern in CONCERNS}
        for name, value in current_names(options).items():
            if name not in known:
                meant = " or ".join(map(repr, near(name, known)))
                ask = f"did you mean {meant}? " if meant else ""
                raise UserError(
                    f"unknown setting {name!r}; {ask}see codream-secure simulate --help-all"
                )
            if value is not None:
                values[known[name].concern][name] = known[name].checked(value)
        return Config(**{concern: CONCERNS[concern](**given) for concern, given in values.items()})

    def options(self) -> dict[str, object]:
        """Return all settings by their flat names, None where nothing was chosen."""
        return {one.name: getattr(getattr(self, one.concern), one.name) for one in settings()}

    @property
    def private(self) -> bool:
        """Whether anything is differentially private."""
        return self.privacy.dp_eps is not None

    @property
    def private_training(self) -> bool:
        """Whether local training is private: the unit of privacy is one example."""
        return self.private and self.privacy.dp_unit == "example"

    @property
    def private_clients(self) -> bool:
        """Whether the unit of privacy is one client, so that labels alone are released."""
        return self.private and self.privacy.dp_unit == "client"

    @property
    def has_common_model(self) -> bool:
        """Whether clients average a common model, so that no gradient of dreams is asked for."""
        return self.dream.method == "codream-messenger"

    @property
    def has_noisy_model(self) -> bool:
        """Whether the common model is trained by noisy sums over everybody's examples."""
        return self.has_common_model and self.private_training

    @property
    def common_architecture(self) -> str:
        """The architecture of the common model; under DP a small one, which noise hurts less."""
        return self.messenger.messenger or ("mlp" if self.private else "lenet5")


# -- defaults that depend on the method and on the unit of privacy ------------------------------

# Public constants. They were chosen on validation folds of the digits' training part
# (benchmarks/choices/digits_choices.py). They never depend on a client's data in a run: under DP
# such a choice would be a release that nobody accounts for.
_PLAIN = {
    "rounds": 6,
    "dreams": 128,
    "dream_batches": 1,
    "dream_steps": 20,
    "dream_lr": 0.2,
    "bn_weight": 10.0,
    "statistics_momentum": 0.0,
    "prior_correction": 0.5,
}
_FAST = _PLAIN | {"dreams": 64, "dream_batches": 4, "dream_steps": 5}
_MESSENGER = _PLAIN | {
    "rounds": 4,
    "dream_batches": 4,
    "dream_steps": 40,
    "dream_lr": 0.1,
    "bn_weight": 1.0,
}
_PRIVATE = _PLAIN | {
    "rounds": 3,
    "dreams": 256,
    "dream_steps": 10,
    "dream_lr": 0.05,
    "bn_weight": 0.0,
    "prior_correction": 0.0,
}
# The transfer set of the common model under DP: images around the class means, and noise.
_NOISY_MESSENGER = _PRIVATE | {
    "rounds": 2,
    "dreams": 512,
    "dream_batches": 4,
    "dream_steps": 0,
}
# Chosen in the same way (table "client level"). Zero steps: on the digits, dreams that only the
# server's student moves were worse queries than the noise that they start from.
_PRIVATE_CLIENTS = {
    "rounds": 2,
    "dreams": 64,
    "dream_steps": 0,
    "bn_weight": 0.0,
    "prior_correction": 0.0,
}


_BY_METHOD = {"codream": _PLAIN, "codream-fast": _FAST, "codream-messenger": _MESSENGER}


def constants(config: Config) -> Mapping[str, float]:
    """Return the defaults of this method and this unit of privacy, by the option's name."""
    if config.private_clients:
        return _PLAIN | _PRIVATE_CLIENTS
    if config.has_noisy_model:
        return _NOISY_MESSENGER
    fast = _BY_METHOD[config.dream.method]
    if config.learning.local_loss == "balanced":
        # These logits are corrected for class frequencies already, in training.
        fast = fast | {"prior_correction": 0.0}
    if not config.private:
        return fast
    return fast | {name: v for name, v in _PRIVATE.items() if v != _PLAIN[name]}


def described_default(setting: Setting) -> str | None:
    """Return the default as ``--help`` shows it; None where the help text says it."""
    name = setting.name
    if name not in _PLAIN:
        return None if setting.default is None else str(setting.default)
    text = f"{_PLAIN[name]:g}"
    if _FAST[name] != _PLAIN[name]:
        text += f", codream-fast {_FAST[name]:g}"
    if _MESSENGER[name] != _PLAIN[name]:
        text += f", codream-messenger {_MESSENGER[name]:g}"
    if _PRIVATE[name] != _PLAIN[name]:
        text += f", under DP {_PRIVATE[name]:g}"
    if _PRIVATE_CLIENTS.get(name, _PRIVATE[name]) != _PRIVATE[name]:
        text += f", with --dp-unit client {_PRIVATE_CLIENTS[name]:g}"
    return text


def models_of(config: Config) -> str:
    """Return the names of the architectures, separated by commas."""
    if config.model.models != "auto":
        return config.model.models
    return "mlp" if config.private else "resnet8"


def any_norm(config: Config) -> bool:
    """Tell whether ``norm`` changes any model; user-defined models ignore it."""
    names = {name.strip() for name in models_of(config).split(",")}
    return bool(names & set(MODEL_NAMES) - WITHOUT_NORM)
