"""A site's own policy: the bounds that its operator sets, in ``policy.toml`` beside its folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta

from codream_secure.errors import RequestRefused, UserError
from codream_secure.models.names import MODEL_NAMES
from codream_secure.storage.looking import is_file, is_folder
from codream_secure.storage.toml import load_toml
from protocols.params import MAX_CLIENTS, MAX_INPUT, MAX_LENGTH, MAX_STEPS
from protocols.quantization import CLIP_MAX, CLIP_MIN

FILE = "policy.toml"

_Count = Annotated[int, Meta(ge=0, le=1_000_000)]
_Some = Annotated[int, Meta(ge=1, le=1_000_000)]
_Clip = Annotated[float, Meta(ge=CLIP_MIN, le=CLIP_MAX)]
_Weight = Annotated[float, Meta(ge=0, le=1e6)]
_Size = Annotated[float, Meta(gt=0, le=1e3)]
_Temperature = Annotated[float, Meta(ge=1e-2, le=1e3)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_SessionName = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class SitePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site takes part in, whatever its server proposes.

    Its types hold the widest values that the code allows. Its defaults are the narrowest ones under
    which the documented examples run. ``min_`` and ``max_`` name the ends of what is allowed.

    Attributes:
        colluders: n_C, sites that may work for the server; None: as many as the default threshold
            bears. A lower threshold is refused.
        min_cohort: the fewest sites in a sum.
        max_clients: the most sites of a session.
        rejoin: malicious model: whether a site that missed a step may take part in the next one.
        returns: how often, in a session without rejoin, a cohort may grow again.
        small_differences: how many sums of a session may show one site's answer by their
            difference to an earlier one about similar pixels (malicious model).
        similar_pixels: pixels are similar if they differ by less than this, root mean square.
        sessions_per_day, sessions_total: how many sessions may begin.
        sessions: sessions, in hex, that are admitted beyond these two numbers.
        kinds: kinds of sums; None: all that the site's app has.
        datasets: what a run may name as its public dataset; None: any.
        models: architectures that a run may give to the site.
        epsilon, delta: what all sessions together may spend; an epsilon of None: no limit.
        unit: whom that limit protects: one example of the site, or the site as a whole.
        answer_every: over machines an answer leaves at the next multiple of so many seconds.
        max_vector: the most numbers in one answer.
        max_bits: of one number in an answer.
        min_clip, max_clip: of every section of an answer.
        max_weight_cap: the most examples that count; 0: equal weights alone.
        max_key_steps: steps that one key exchange prepares.
        max_model_value: of a number in the model that a server sends, without its sign.
        max_config_value: of a number in the configuration of an app's function, without its sign.
        max_dreams, max_batches: of one request: all dreams together, and parallel batches.
        max_local_steps, max_local_size: steps on the site's own copy of the dreams.
        max_entropy_weight, max_bn_weight, max_balance_weight, max_adaptive_weight: of loss terms.
        max_momentum: of feature statistics.
        min_temperature, max_temperature: of labels and distillation.
        max_student_logit: of the server student's logits, without their sign.
        max_rounds, max_dream_steps, max_dream_batches: of a run.
        max_warmup_epochs, max_local_epochs, max_kd_epochs: of training.
        max_batch: examples or dreams in one step of training.
        max_buffer: dream batches that are kept.
        max_samples: examples that a run may assume at each site.
        max_width: of models.
        max_learning_rate, max_weight_decay, max_dp_lr: of training; the last one with DP.
        min_dp_clip, max_dp_clip, max_dp_steps: of private training.
    """

    colluders: Annotated[int, Meta(ge=0, le=MAX_CLIENTS)] | None = None
    min_cohort: Annotated[int, Meta(ge=2, le=MAX_CLIENTS)] = 3
    max_clients: Annotated[int, Meta(ge=2, le=MAX_CLIENTS)] = 1000
    rejoin: bool = False
    returns: _Count = 20
    small_differences: _Count = 10
    similar_pixels: Annotated[float, Meta(ge=0, le=255)] = 8.0
    sessions_per_day: _Count = 10
    sessions_total: _Count = 100
    sessions: tuple[_SessionName, ...] = ()
    kinds: tuple[_Name, ...] | None = None
    datasets: tuple[_Name, ...] | None = None
    models: tuple[_Name, ...] = MODEL_NAMES
    epsilon: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    unit: Literal["example", "client"] = "example"
    answer_every: Annotated[float, Meta(ge=0, le=3600)] = 1.0
    max_vector: Annotated[int, Meta(ge=1, le=MAX_LENGTH)] = 1_000_000
    max_bits: Annotated[int, Meta(ge=1, le=MAX_INPUT.bit_length())] = 20
    min_clip: _Clip = CLIP_MIN
    max_clip: _Clip = CLIP_MAX
    max_weight_cap: Annotated[int, Meta(ge=0, le=MAX_INPUT)] = 100_000
    max_key_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] = 64
    max_model_value: Annotated[float, Meta(gt=0, le=1e12)] = 1e4
    max_config_value: Annotated[float, Meta(gt=0, le=1e12)] = 1e6
    max_dreams: _Some = 512
    max_batches: _Some = 16
    max_local_steps: Annotated[int, Meta(ge=1, le=64)] = 16
    max_local_size: _Size = 1.0
    max_entropy_weight: _Weight = 10.0
    max_bn_weight: _Weight = 100.0
    max_balance_weight: _Weight = 10.0
    max_adaptive_weight: _Weight = 10.0
    max_momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    min_temperature: _Temperature = 0.5
    max_temperature: _Temperature = 20.0
    max_student_logit: Annotated[float, Meta(gt=0, le=1e6)] = 1e3
    max_rounds: _Some = 1000
    max_dream_steps: _Count = 1000
    max_dream_batches: _Some = 64
    max_warmup_epochs: _Count = 200
    max_local_epochs: _Count = 100
    max_kd_epochs: _Count = 200
    max_batch: _Some = 4096
    max_buffer: _Some = 64
    max_samples: _Some = 100_000
    max_width: _Some = 1024
    max_learning_rate: _Size = 0.1
    max_weight_decay: _Weight = 0.1
    max_dp_lr: _Size = 10.0
    min_dp_clip: _Size = 1e-3
    max_dp_clip: _Size = 10.0
    max_dp_steps: _Some = 1000

    def __post_init__(self) -> None:
        """Refuse bounds between which nothing lies."""
        for end in ("clip", "temperature", "dp_clip"):
            if not getattr(self, f"min_{end}") <= getattr(self, f"max_{end}"):
                raise ValueError(f"min_{end} is above max_{end}")

    @classmethod
    def beside(cls, folder: Path) -> Self:
        """Return the policy of the site whose state folder this is; without a file the defaults.

        Raises:
            UserError: the file cannot be read, has an unknown entry, or a value out of range.
        """
        path = path_of(folder)
        there = is_file(path) or is_folder(path)
        return cls.of(load_toml(path), str(path)) if there else cls()

    @classmethod
    def of(cls, entries: Mapping[str, object], source: str = FILE) -> Self:
        """Return the policy with these entries.

        Raises:
            UserError: an unknown entry, or a value out of range; ``source`` is named.
        """
        unknown = sorted(set(entries) - set(cls.__struct_fields__))
        if unknown:
            raise UserError(
                f"{source} has an unknown entry {unknown[0]!r}; docs/deployment.md lists all"
            )
        for name, value in entries.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{source}: {name} = {value} is no finite number")
        try:
            return msgspec.convert(dict(entries), cls)
        except msgspec.ValidationError as error:
            told, _, place = str(error).partition(" - at `$.")
            name = place.rstrip("`")
            value = f"{name} = {entries[name]!r}: " if name in entries else f"{name} " * bool(name)
            raise UserError(f"{source}: {value}{told[:1].lower()}{told[1:]}") from None

    def lines(self) -> list[str]:
        """Return every entry as a line ``name = value``."""
        return [f"{n} = {_shown(v)}" for n, v in msgspec.structs.asdict(self).items()]

    def check(self, what: str, value: float, *bounds: str) -> None:
        """Refuse a number that is beyond a bound.

        Args:
            what: the number is, for the refusal.
            value: proposed by the server; NaN is refused.
            bounds: names of entries that begin with ``min_`` or ``max_``.

        Raises:
            RequestRefused: the number is beyond a bound.
        """
        for name in bounds:
            bound = getattr(self, name)
            if not (value >= bound if name.startswith("min_") else value <= bound):
                raise RequestRefused(f"{what} {value} is beyond this site's {name} = {bound}")

    def check_name(self, what: str, value: object, entry: str) -> None:
        """Refuse a name that is not in a list of the policy.

        Raises:
            RequestRefused: it is not.
        """
        allowed = getattr(self, entry)
        if allowed is not None and value not in allowed:
            raise RequestRefused(f"{what} {value!r} is not in this site's list {entry}")


def path_of(folder: Path) -> Path:
    """Return the place of the policy file of the site with this state folder."""
    return folder.absolute().parent / FILE


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value}"
