"""Settings of a run: one frozen dataclass per concern; every field is an option of the CLI.

A field's name with dashes is its option, with underscores its key in a TOML file. A default of
None is filled in by `codream_secure.config.rules`, from public constants.
"""

import dataclasses
import math
import operator
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_type_hints

from codream_secure.config.aliases import current_names, option
from codream_secure.data.datasets import DATASET_NAMES
from codream_secure.errors import UserError
from codream_secure.models.names import MODEL_NAMES
from protocols.params import MAX_INPUT, MAX_STEPS

_T = TypeVar("_T")


def _option(default: object, help_text: str, /, **limits: float) -> Any:  # noqa: ANN401
    return field(default=default, metadata={"help": help_text, **limits})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which data, and who has which part of it."""

    dataset: str = _option(
        "digits",
        f"{', '.join(DATASET_NAMES)}; or the path of an .npz file; or of a folder of images, with "
        "train/ and test/ or to be split, and in it a folder for every class",
    )
    data_dir: str = _option("data", "folder that datasets are downloaded to")
    image_size: int | None = _option(
        None, "height and width that images of a folder are resized to", min=1, max=1024
    )
    partition: str = _option(
        "iid",
        "iid; dirichlet:ALPHA (every client's classes, equal sizes); dirichlet-labels:ALPHA (how "
        "clients share every class, sizes differ); shards:CLASSES_PER_CLIENT",
    )
    clients: int = _option(10, "number of clients", min=2)
    samples_per_client: int | None = _option(
        None,
        "examples dealt to every client, on average under dirichlet-labels (default: all there "
        "are, divided)",
        min=1,
    )
    validation: float = _option(
        0.1, "fraction of each client's data kept for validation (0 under DP)", min=0, max=0.5
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which architectures."""

    models: str = _option(
        "auto",
        "comma-separated architectures, given to clients in turn: auto (resnet8, mlp under DP), "
        f"{', '.join(MODEL_NAMES)}, or your own as my_module:my_function",
    )
    width: int | None = _option(
        None,
        "width of the models (default: each model's own; linear and yours have none)",
        min=1,
        max=4096,
    )
    norm: Literal["auto", "batch", "group"] = _option(
        "auto", "normalization layers; auto: batch, group under DP"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamConfig:
    """How dreams are made."""

    method: Literal["codream", "codream-fast"] = _option(
        "codream", "the server moves pixels, or (fast) a generator that makes them"
    )
    collaboration: bool = _option(
        True, "dream together; --no-collaboration: every client dreams alone (an ablation)"
    )
    rounds: int | None = _option(None, "rounds of dreaming and learning", min=1)
    dreams: int | None = _option(None, "dreams in a batch", min=1)
    dream_batches: int | None = _option(None, "batches of dreams a round", min=1)
    parallel_batches: bool = _option(
        False, "move all dream batches of a round together: one sum a step, fewer round trips"
    )
    dream_steps: int | None = _option(None, "global steps a batch (R)", min=0)
    label_last_step: bool = _option(
        False, "fast: the last step's broadcast also asks for labels, in place of one more"
    )
    dream_optimizer: Literal["adam", "avg", "fedadam"] = _option(
        "adam", "how the server moves pixels; avg: by the mean of the clients' moves"
    )
    dream_lr: float | None = _option(
        None, "step size on pixels, in scaled pixels; with avg a factor", above=0
    )
    local_steps: int = _option(
        1, "steps of every client on its own copy of the dreams (M)", min=1, max=64
    )
    local_size: float = _option(
        0.1, "size of such a step where a gradient equals the clip, in scaled pixels", above=0
    )
    bits: int = _option(4, "bits of one quantized gradient coordinate", min=1, max=16)
    entropy_weight: float = _option(1.0, "weight of the predictions' entropy; 0: off", min=0)
    bn_weight: float | None = _option(
        None, "weight of R_bn, the distance to BatchNorm statistics; 0: off", min=0
    )
    statistics_momentum: float | None = _option(
        None, "share of earlier dreams in R_bn's statistics", min=0, below=1
    )
    balance_weight: float = _option(1.0, "weight of class balance; 0: off", min=0)
    prior_correction: float | None = _option(
        None, "how far clients take their class frequencies out of their logits, 0..1", min=0, max=1
    )
    adaptive: Literal["none", "jsd", "kl"] = _option(
        "none", "R_adv: seek dreams on which the server's student disagrees (adaptive teaching)"
    )
    adaptive_weight: float = _option(1.0, "weight of R_adv", above=0)
    adaptive_start: int = _option(2, "first round with R_adv", min=1)
    adaptive_bits: int = _option(
        8, "bits of the gradient with respect to one logit of the student", min=1, max=16
    )
    tv_weight: float = _option(0.0, "weight of total variation (the server's); 0: off", min=0)
    l2_weight: float = _option(0.0, "weight of the L2 prior (the server's); 0: off", min=0)
    latent: int = _option(64, "fast: numbers in a latent vector", min=1, max=4096)
    generator_width: int = _option(32, "fast: channels of the generator", min=1, max=1024)
    generator_lr: float = _option(5e-3, "fast: Adam's step size on the generator", above=0)
    latent_lr: float = _option(1.5e-2, "fast: Adam's step size on latent vectors", above=0)
    meta: Literal["reptile", "fomaml"] = _option(
        "reptile", "fast: how the meta-generator follows a batch's generator"
    )
    meta_lr: float = _option(1e-2, "fast: Adam's step size on the meta-generator", above=0)
    generator_decay: float = _option(1e-4, "fast: weight decay of the meta-generator", min=0)
    generator_average: float = _option(
        0.0, "fast: batches start from this running average of the meta-generator", min=0, below=1
    )
    generator_norm: float = _option(
        10.0, "fast: a batch's generator gradient is clipped to this norm", above=0
    )
    generator_reset: int = _option(
        0, "fast: round before which the generator's first layer is drawn anew; 0: never", min=0
    )

    @property
    def syntheses(self) -> int:
        """Return how many syntheses a round has, one after another."""
        return 1 if self.parallel_batches else set_(self.dream_batches)

    @property
    def sums_per_synthesis(self) -> int:
        """Return how many sums a synthesis takes: its steps, and one for labels."""
        return set_(self.dream_steps) + (not self.label_last_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """How participants learn from dreams and from their own data."""

    labels: Literal["probabilities", "logits"] = _option(
        "probabilities", "what is averaged: probabilities at the KD temperature, or logits"
    )
    label_weighting: Literal["equal", "confidence"] = _option(
        "equal", "clients count alike, or by their confidence at each dream"
    )
    weights: Literal["equal", "examples"] = _option(
        "equal", "clients count alike, or by how many examples they have (see SECURITY.md)"
    )
    weight_cap: int | None = _option(
        None, "most examples that count (default: four even shares)", min=1, max=MAX_INPUT
    )
    label_bits: int = _option(8, "bits of one quantized label", min=1, max=16)
    label_clip: float = _option(20.0, "public range of a logit", above=0, max=1e6)
    acquisition: Literal["joint", "two-stage"] = _option(
        "joint", "distil and learn locally together, or one after the other"
    )
    kd_temperature: float = _option(4.0, "distillation temperature", above=0)
    kd_epochs: int = _option(20, "distillation epochs over the buffer, each time", min=0)
    kd_period: int = _option(1, "distil in every k-th round, k =", min=1)
    kd_batch: int = _option(128, "dreams in a distillation step", min=1)
    dream_augment: Literal["none", "crop", "flip-crop"] = _option(
        "none", "how dreams are changed anew in every distillation epoch"
    )
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
    """Differential privacy."""

    dp_eps: float | None = _option(None, "total epsilon a client; turns DP on", above=0)
    dp_unit: Literal["example", "client"] = _option(
        "example", "who is protected: one training example, or one client with all its data"
    )
    accept_low_utility: bool = _option(
        False, "run --dp-unit client although the noise is predicted to drown the labels"
    )
    dp_delta: float = _option(1e-5, "delta", above=0, below=1)
    dp_clip: float = _option(0.5, "L2 clip of one example's gradient", above=0)
    dp_batch: int | None = _option(
        None, "expected examples in a private step (default: an even share, at most 512)", min=1
    )
    dp_steps: int = _option(40, "private steps of a client in the whole run", min=1)
    dp_lr: float | None = _option(
        None,
        "step size of private SGD (default: by its noise z, min(2, 8 / z); with statistics "
        "min(1, 4 / z))",
        above=0,
    )
    dp_warmup: float = _option(
        1.0, "part of the private steps taken before the first round", min=0, max=1
    )
    statistics_eps: float | None = _option(
        None,
        "part of --dp-eps for class means that all clients release together, under masks and "
        "noise of everybody (default: the smaller of 4 and 0.9 times --dp-eps); 0: none",
        min=0,
    )
    statistics_weight: float = _option(
        0.0, "weight of the server's term that keeps dreams near the class means", min=0
    )
    secure_noise: bool = _option(
        False,
        "DP-SGD in exact integers, with discrete Gaussian noise from AES-CTR; full batches only",
    )
    dp_noise: Literal["skellam", "gaussian"] = _option(
        "skellam", "integer noise that clients add to sums before they mask them"
    )
    noise_colluders: int | None = _option(
        None,
        "clients whose share of noise the server may know (default: 1; malicious: as many as may "
        "collude)",
        min=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where the run happens."""

    device: Literal["auto", "cpu", "cuda"] = _option("auto", "where tensors live")
    precision: Literal["float32", "bf16"] = _option(
        "float32", "of models' forward passes; what is quantized and sent is float32 always"
    )
    channels_last: bool = _option(
        True, "keep features with channels innermost: faster convolutions"
    )
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

        Old names (`codream_secure.config.aliases`) stand for the current ones.

        Raises:
            UserError: unknown name, wrong type, value out of range.
        """
        known = {setting.name: setting for setting in settings()}
        values: dict[str, dict[str, object]] = {concern: {} for concern in _CONCERNS}
        for name, value in current_names(options).items():
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
        """Return all settings by their flat names, None where nothing was chosen."""
        return {
            item.name: getattr(getattr(self, part.name), item.name)
            for part in fields(self)
            for item in fields(getattr(self, part.name))
        }

    @property
    def private(self) -> bool:
        """Whether anything is differentially private."""
        return self.privacy.dp_eps is not None

    @property
    def private_training(self) -> bool:
        """Whether local training is: the unit of privacy is one example."""
        return self.private and self.privacy.dp_unit == "example"

    @property
    def private_clients(self) -> bool:
        """Whether the unit of privacy is one client, so that labels alone are released."""
        return self.private and self.privacy.dp_unit == "client"


def _checked(setting: Setting, value: object) -> object:
    named = option(setting.name)
    if setting.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, setting.kind) or (setting.kind is int and isinstance(value, bool)):
        raise UserError(f"{named} must be of type {setting.kind.__name__}, not {value!r}")
    if setting.choices and value not in setting.choices:
        raise UserError(f"{named} must be one of {', '.join(setting.choices)}, not {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(named, value, setting.limits)
    return value


_LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "min": ("at least", operator.ge),
    "max": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}


def _check_range(named: str, value: float, limits: Mapping[str, float]) -> None:
    if not math.isfinite(value):
        raise UserError(f"{named} must be a finite number, not {value}")
    for name, bound in limits.items():
        words, holds = _LIMITS[name]
        if not holds(value, bound):
            raise UserError(f"{named} must be {words} {bound:g}, not {value}")


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


def set_(value: _T | None) -> _T:
    """Return a value that `codream_secure.config.rules` has filled in.

    Raises:
        ValueError: it has not.
    """
    if value is None:
        raise ValueError("the configuration was not resolved")
    return value
