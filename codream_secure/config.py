"""Settings of a run: one frozen dataclass per concern; every field is an option of the CLI.

A field's name with dashes is its option, with underscores its key in a TOML file. A default of
None is filled in by `resolve`, from public constants that depend on whether DP is on.
"""

import dataclasses
import math
import operator
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

import tomli_w

from codream_secure.errors import UserError
from protocols.params import MAX_STEPS


def _option(default: object, help_text: str, /, **limits: float) -> Any:  # noqa: ANN401
    return field(default=default, metadata={"help": help_text, **limits})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which data, and who has which part of it."""

    dataset: str = _option(
        "digits", "digits, mnist, fashion-mnist, cifar10, svhn, or the path of an .npz file"
    )
    data_dir: str = _option("data", "folder that torchvision downloads datasets to")
    partition: str = _option("iid", "iid or dirichlet:ALPHA")
    clients: int = _option(10, "number of clients", min=2)
    validation: float = _option(
        0.1, "fraction of each client's data kept for validation (0 under DP)", min=0, max=0.5
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which architectures."""

    models: str = _option(
        "auto",
        "comma-separated architectures, given to clients in turn; auto: resnet8, mlp under DP",
    )
    width: int | None = _option(
        None, "width of the models (default: each model's own)", min=1, max=4096
    )
    norm: Literal["auto", "batch", "group"] = _option(
        "auto", "normalization layers; auto: batch, group under DP"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamConfig:
    """How dreams are made."""

    method: Literal["codream"] = _option("codream", "how dreams are synthesised")
    rounds: int | None = _option(None, "rounds of dreaming and learning", min=1)
    dreams: int | None = _option(None, "dreams in a batch", min=1)
    dream_batches: int = _option(1, "batches of dreams a round", min=1)
    dream_steps: int | None = _option(None, "global steps a batch (R)", min=0)
    dream_lr: float | None = _option(None, "Adam's step size on dreams, in scaled pixels", above=0)
    bits: int = _option(4, "bits of one quantized gradient coordinate", min=1, max=16)
    entropy_weight: float = _option(1.0, "weight of the predictions' entropy; 0: off", min=0)
    bn_weight: float | None = _option(
        None, "weight of R_bn, the distance to BatchNorm statistics; 0: off", min=0
    )
    balance_weight: float = _option(1.0, "weight of class balance; 0: off", min=0)
    tv_weight: float = _option(0.0, "weight of total variation (the server's); 0: off", min=0)
    l2_weight: float = _option(0.0, "weight of the L2 prior (the server's); 0: off", min=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """How participants learn from dreams and from their own data."""

    labels: Literal["probabilities", "logits"] = _option(
        "probabilities", "what is averaged: probabilities at the KD temperature, or logits"
    )
    label_bits: int = _option(8, "bits of one quantized label", min=1, max=16)
    label_clip: float = _option(20.0, "public range of a logit", above=0, max=1e6)
    acquisition: Literal["joint", "two-stage"] = _option(
        "joint", "distil and learn locally together, or one after the other"
    )
    kd_temperature: float = _option(4.0, "distillation temperature", above=0)
    kd_epochs: int = _option(20, "distillation epochs over the buffer a round", min=0)
    kd_batch: int = _option(128, "dreams in a distillation step", min=1)
    buffer: int = _option(4, "dream batches kept, first in first out", min=1)
    learning_rate: float = _option(3e-3, "Adam's step size on models", above=0)
    batch: int = _option(32, "local examples in a step (without DP)", min=2)
    warmup_epochs: int = _option(20, "local epochs before the first round (without DP)", min=0)
    local_epochs: int = _option(
        0, "local epochs a round besides the joint steps (without DP)", min=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureConfig:
    """How sums are protected."""

    secure: bool = _option(True, "aggregate under masks; --no-secure sums in the clear")
    threat_model: Literal["semi-honest", "malicious"] = _option(
        "semi-honest",
        "whom clients take the server for; malicious: signed messages, one more round trip",
    )
    threshold: int | None = _option(
        None, "clients that must stay (default: floor(2n/3) + 1)", min=1
    )
    key_steps: int | None = _option(
        None,
        "steps that one key exchange prepares (default: all of one synthesis)",
        min=1,
        max=MAX_STEPS,
    )
    rejoin: bool = _option(
        False, "malicious: a client that missed a step may be back before the next key exchange"
    )
    dropout: float = _option(
        0.0,
        "probability that a client fails in one step, and in one key exchange",
        min=0,
        max=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """Example-level differential privacy of local training."""

    dp_eps: float | None = _option(None, "total epsilon a client; turns DP on", above=0)
    dp_delta: float = _option(1e-5, "delta", above=0, below=1)
    dp_clip: float = _option(0.5, "L2 clip of one example's gradient", above=0)
    dp_batch: int | None = _option(
        None, "expected examples in a private step (default: an even share, at most 512)", min=1
    )
    dp_steps: int = _option(40, "private steps of a client in the whole run", min=1)
    dp_lr: float = _option(2.0, "step size of private SGD", above=0)
    dp_warmup: float = _option(
        1.0, "part of the private steps taken before the first round", min=0, max=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where the run happens."""

    device: Literal["auto", "cpu", "cuda"] = _option("auto", "where tensors live")
    seed: int | None = _option(
        None,
        "seed of the run (default 0). Given explicitly under DP it also seeds the noise: "
        "for experiments only",
        min=0,
    )


_CONCERNS: dict[str, type[Any]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "dream": DreamConfig,
    "learning": LearningConfig,
    "secure": SecureConfig,
    "privacy": PrivacyConfig,
    "run": RunConfig,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One option: what the command line and the TOML reader need to know of it."""

    name: str
    concern: str
    kind: type
    optional: bool
    choices: tuple[str, ...]
    default: object
    help: str
    limits: Mapping[str, float]


def settings() -> tuple[Setting, ...]:
    """Return all options in the order of the dataclasses."""
    return tuple(
        _setting(concern, cls, item) for concern, cls in _CONCERNS.items() for item in fields(cls)
    )


def _setting(concern: str, cls: type, item: "dataclasses.Field[Any]") -> Setting:
    hint = get_type_hints(cls)[item.name]
    options = get_args(hint)
    optional = type(None) in options
    choices = tuple(str(o) for o in options) if options and not optional else ()
    kind = str if choices else next((o for o in options if o is not type(None)), hint)
    limits = {key: value for key, value in item.metadata.items() if key != "help"}
    return Setting(
        item.name, concern, kind, optional, choices, item.default, item.metadata["help"], limits
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    dream: DreamConfig = DreamConfig()
    learning: LearningConfig = LearningConfig()
    secure: SecureConfig = SecureConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    run: RunConfig = RunConfig()

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """Build a configuration from flat names with underscores; None stands for "not given".

        Raises:
            UserError: unknown name, wrong type, value out of range.
        """
        known = {setting.name: setting for setting in settings()}
        values: dict[str, dict[str, object]] = {concern: {} for concern in _CONCERNS}
        for name, value in options.items():
            if name not in known:
                raise UserError(f"unknown setting {name!r}; see codream-secure simulate --help")
            if value is not None:
                setting = known[name]
                values[setting.concern][name] = _checked(setting, value)
        parts: dict[str, Any] = {
            concern: _CONCERNS[concern](**values[concern]) for concern in values
        }
        return cls(**parts)

    def options(self) -> dict[str, object]:
        """Return the flat options that rebuild this configuration (None left out)."""
        flat = {
            k: v for part in fields(self) for k, v in _shallow(getattr(self, part.name)).items()
        }
        unused = _PLAIN_ONLY if self.private else fields(PrivacyConfig)
        left_out = {item if isinstance(item, str) else item.name for item in unused}
        return {k: v for k, v in flat.items() if v is not None and k not in left_out}

    def to_toml(self) -> str:
        """Return the configuration as a TOML text that `load_toml` reads."""
        return tomli_w.dumps(self.options())

    @property
    def private(self) -> bool:
        """Whether local training is differentially private."""
        return self.privacy.dp_eps is not None


def _shallow(part: object) -> dict[str, object]:
    return {item.name: getattr(part, item.name) for item in fields(part)}  # type: ignore[arg-type]


def _checked(setting: Setting, value: object) -> object:
    option = "--" + setting.name.replace("_", "-")
    if setting.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, setting.kind) or (setting.kind is int and isinstance(value, bool)):
        raise UserError(f"{option} must be of type {setting.kind.__name__}, not {value!r}")
    if setting.choices and value not in setting.choices:
        raise UserError(f"{option} must be one of {', '.join(setting.choices)}, not {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(option, value, setting.limits)
    return value


_LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "min": ("at least", operator.ge),
    "max": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}


def _check_range(option: str, value: float, limits: Mapping[str, float]) -> None:
    if not math.isfinite(value):
        raise UserError(f"{option} must be a finite number, not {value}")
    for name, bound in limits.items():
        words, holds = _LIMITS[name]
        if not holds(value, bound):
            raise UserError(f"{option} must be {words} {bound:g}, not {value}")


def load_toml(path: Path) -> dict[str, object]:
    """Read options from a TOML file.

    Raises:
        UserError: the file is missing or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None


# Public constants, chosen on validation folds of the digits' training part
# (benchmarks/digits_accuracy.py); never on a client's data in a run.
_PLAIN = {"rounds": 6, "dreams": 128, "dream_steps": 20, "dream_lr": 0.2, "bn_weight": 10.0}
_PRIVATE = {"rounds": 3, "dreams": 256, "dream_steps": 10, "dream_lr": 0.05, "bn_weight": 0.0}


# Options that mean nothing under DP: there is no validation part, and `dp_steps` and `dp_batch`
# say how much is learned locally.
_PLAIN_ONLY = ("validation", "batch", "warmup_epochs", "local_epochs")


def _check_applicable(config: Config) -> None:
    """Refuse options that would be accepted and ignored.

    Raises:
        UserError: names the first one.
    """
    everything = {
        k: v for part in fields(config) for k, v in _shallow(getattr(config, part.name)).items()
    }
    for setting in settings():
        option = "--" + setting.name.replace("_", "-")
        # 0 asks for nothing, and is what `resolve` puts in.
        if everything[setting.name] in (setting.default, 0):
            continue
        if config.private and setting.name in _PLAIN_ONLY:
            raise UserError(f"{option} cannot be used with --dp-eps; use --dp-steps or --dp-batch")
        if not config.private and setting.concern == "privacy":
            raise UserError(f"{option} needs --dp-eps")
    _check_protection(config.secure)


def _check_protection(secure: SecureConfig) -> None:
    if secure.threat_model == "malicious" and not secure.secure:
        raise UserError("--threat-model malicious cannot be used with --no-secure")
    if secure.rejoin and secure.threat_model != "malicious":
        raise UserError("--rejoin needs --threat-model malicious; else clients may always be back")


def described_default(setting: Setting) -> str | None:
    """Return the default as ``--help`` shows it; None where the help text says it."""
    if setting.name in _PLAIN:
        return f"{_PLAIN[setting.name]:g}, under DP {_PRIVATE[setting.name]:g}"
    return None if setting.default is None else str(setting.default)


def resolve(config: Config) -> Config:
    """Fill in every default that depends on another setting.

    Raises:
        UserError: settings that contradict each other.
    """
    private = config.private
    _check_applicable(config)
    if private and config.model.norm == "batch":
        raise UserError(
            "--norm batch cannot be used with --dp-eps: batch statistics are not private; "
            "use --norm group"
        )
    if private and config.dream.bn_weight:
        raise UserError(
            "--bn-weight cannot be used with --dp-eps: BatchNorm statistics are not private; "
            "leave it out"
        )
    constants = _PRIVATE if private else _PLAIN
    chosen = {
        name: default for name, default in constants.items() if getattr(config.dream, name) is None
    }
    model = dataclasses.replace(
        config.model,
        models=("mlp" if private else "resnet8")
        if config.model.models == "auto"
        else config.model.models,
        norm=("group" if private else "batch")
        if config.model.norm == "auto"
        else config.model.norm,
    )
    data = dataclasses.replace(config.data, validation=0.0) if private else config.data
    dream: DreamConfig = dataclasses.replace(config.dream, **chosen)  # type: ignore[arg-type]
    return dataclasses.replace(config, dream=dream, model=model, data=data)
