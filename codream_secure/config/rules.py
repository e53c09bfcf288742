"""Which settings go together, and the defaults that depend on others."""

import dataclasses
from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

import tomli_w

from codream_secure.config.aliases import option
from codream_secure.config.settings import Config, DreamConfig, PrivacyConfig, Setting, settings
from codream_secure.errors import UserError
from codream_secure.models.names import MODEL_NAMES, WITHOUT_NORM

# Public constants, chosen on validation folds of the digits' training part
# (benchmarks/digits_choices.py); never on a client's data in a run.
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
_PRIVATE = _PLAIN | {
    "rounds": 3,
    "dreams": 256,
    "dream_steps": 10,
    "dream_lr": 0.05,
    "bn_weight": 0.0,
    "prior_correction": 0.0,
}
# Chosen likewise (table "client level"): on digits, dreams that only the server's student moves are
# worse queries than the noise they begin as.
_PRIVATE_CLIENTS = {
    "rounds": 2,
    "dreams": 64,
    "dream_steps": 0,
    "bn_weight": 0.0,
    "prior_correction": 0.0,
}

# Class means cost at most so much epsilon by default, and at most this part of all.
_STATISTICS = (4.0, 0.9)

FAST_ONLY = (
    "label_last_step",
    "latent",
    "generator_width",
    "generator_lr",
    "latent_lr",
    "meta",
    "meta_lr",
    "generator_decay",
    "generator_average",
    "generator_norm",
    "generator_reset",
)
PIXELS_ONLY = ("dream_optimizer", "dream_lr")


class Rule(NamedTuple):
    """Options that mean something only where ``applies`` holds; else ``reason`` says why not."""

    names: tuple[str, ...]
    applies: Callable[[Config], bool]
    reason: str


def _models(config: Config) -> str:
    if config.model.models != "auto":
        return config.model.models
    return "mlp" if config.private else "resnet8"


def _any_norm(config: Config) -> bool:
    """Tell whether ``norm`` decides anything; models of one's own have what they have."""
    names = {name.strip() for name in _models(config).split(",")}
    return bool(names & set(MODEL_NAMES) - WITHOUT_NORM)


_RULES = (
    Rule(
        # There is no validation part, and `dp_steps` and `dp_batch` say how much is learned.
        ("batch", "warmup_epochs", "local_epochs"),
        lambda c: not c.private_training,
        "cannot be used with --dp-eps; use --dp-steps or --dp-batch",
    ),
    Rule(
        ("validation",),
        lambda c: not c.private,
        "cannot be used with --dp-eps: choosing by private data costs privacy",
    ),
    Rule(tuple(f.name for f in fields(PrivacyConfig)), lambda c: c.private, "needs --dp-eps"),
    Rule(
        (
            "dp_clip",
            "dp_batch",
            "dp_steps",
            "dp_lr",
            "dp_warmup",
            "secure_noise",
            "statistics_eps",
            "statistics_weight",
        ),
        lambda c: not c.private_clients,
        "cannot be used with --dp-unit client: labels alone are released",
    ),
    Rule(
        ("accept_low_utility",), lambda c: c.privacy.dp_unit == "client", "needs --dp-unit client"
    ),
    Rule(
        (
            "bits",
            "local_steps",
            "local_size",
            "adaptive",
            "adaptive_weight",
            "adaptive_start",
            "adaptive_bits",
        ),
        lambda c: not c.private_clients,
        "cannot be used with --dp-unit client: no gradient is asked for",
    ),
    Rule(
        ("labels", "label_bits", "label_clip", "label_weighting", "kd_temperature"),
        lambda c: not c.private_clients,
        "cannot be used with --dp-unit client: labels are probabilities with integer noise",
    ),
    Rule(
        ("parallel_batches",),
        lambda c: not c.private_clients,
        "cannot be used with --dp-unit client: a batch has a release of its own",
    ),
    Rule(
        ("parallel_batches",),
        lambda c: c.dream.collaboration and _batches(c) > 1,
        "needs collaboration and more than one batch a round: --dream-batches",
    ),
    Rule(
        FAST_ONLY,
        lambda c: c.dream.method == "codream-fast",
        "needs --method codream-fast",
    ),
    Rule(("norm",), _any_norm, "changes none of --models; leave it out"),
    Rule(
        ("label_last_step",),
        lambda c: c.dream.dream_steps != 0,
        "cannot be used with --dream-steps 0: there is no last step",
    ),
    Rule(
        PIXELS_ONLY,
        lambda c: c.dream.method == "codream",
        "cannot be used with --method codream-fast; use --generator-lr",
    ),
    Rule(
        ("local_size",),
        lambda c: c.dream.local_steps > 1 or c.dream.dream_optimizer == "avg",
        "needs --local-steps above 1 or --dream-optimizer avg",
    ),
    Rule(
        ("adaptive_weight", "adaptive_start", "adaptive_bits"),
        lambda c: c.dream.adaptive != "none",
        "needs --adaptive jsd or kl",
    ),
    Rule(
        ("adaptive",),
        lambda c: c.dream.collaboration,
        "cannot be used with --no-collaboration: the server has no student",
    ),
    Rule(
        ("weights",),
        lambda c: not c.private,
        "cannot be used with --dp-eps: how many examples a client has is private",
    ),
    Rule(
        ("prior_correction",),
        lambda c: not c.private,
        "cannot be used with --dp-eps: class frequencies are private",
    ),
    Rule(
        ("precision",),
        lambda c: not c.private_training,
        "cannot be used with --dp-eps: DP-SGD needs float32",
    ),
    Rule(
        ("statistics_eps", "noise_colluders"),
        lambda c: c.secure.secure and c.dream.collaboration,
        "needs masks and collaboration: alone, a client's share of noise protects nobody",
    ),
    Rule(
        ("noise_colluders", "dp_noise"),
        lambda c: c.private_clients or c.privacy.statistics_eps != 0,
        "needs --statistics-eps or --dp-unit client",
    ),
    Rule(
        ("statistics_weight",),
        lambda c: c.privacy.statistics_eps != 0 and c.dream.method == "codream",
        "needs --statistics-eps and --method codream: dreams that begin at class means",
    ),
    Rule(("weight_cap",), lambda c: c.learning.weights == "examples", "needs --weights examples"),
    Rule(
        ("threat_model",),
        lambda c: c.secure.secure,
        "cannot be used with --no-secure",
    ),
    Rule(
        ("rejoin",),
        lambda c: c.secure.threat_model == "malicious",
        "needs --threat-model malicious; else clients may always be back",
    ),
    Rule(
        ("threat_model", "threshold", "key_steps", "dropout"),
        lambda c: c.dream.collaboration,
        "cannot be used with --no-collaboration: nothing is aggregated",
    ),
)


def _batches(config: Config) -> float:
    return config.dream.dream_batches or _constants(config)["dream_batches"]


def inapplicable(config: Config) -> dict[str, str]:
    """Return the options that mean nothing here, with the reason."""
    return {name: rule.reason for rule in _RULES if not rule.applies(config) for name in rule.names}


def _check_applicable(config: Config) -> None:
    """Refuse options that would be accepted and ignored.

    Raises:
        UserError: names the first one.
    """
    reasons, values = inapplicable(config), config.options()
    for setting in settings():
        # 0 asks for nothing, and is what `resolve` puts in.
        chosen = values[setting.name] not in (setting.default, 0)
        if chosen and setting.name in reasons:
            raise UserError(f"{option(setting.name)} {reasons[setting.name]}")


def _constants(config: Config) -> dict[str, float]:
    if config.private_clients:
        return _PLAIN | _PRIVATE_CLIENTS
    fast = _FAST if config.dream.method == "codream-fast" else _PLAIN
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
    if _PRIVATE[name] != _PLAIN[name]:
        text += f", under DP {_PRIVATE[name]:g}"
    if _PRIVATE_CLIENTS.get(name, _PRIVATE[name]) != _PRIVATE[name]:
        text += f", with --dp-unit client {_PRIVATE_CLIENTS[name]:g}"
    return text


def to_toml(config: Config) -> str:
    """Return a TOML text from which `load_toml` gives this configuration again."""
    left_out = inapplicable(config)
    options = config.options().items()
    return tomli_w.dumps({k: v for k, v in options if v is not None and k not in left_out})


def resolve(config: Config) -> Config:
    """Fill in every default that depends on another setting.

    Raises:
        UserError: settings that contradict each other.
    """
    private = config.private
    if config.private_training and config.model.norm == "batch":
        raise UserError(
            "--norm batch cannot be used with --dp-eps: batch statistics are not private; "
            "use --norm group"
        )
    _check_applicable(config)
    _check_private_clients(config)
    if private and config.dream.bn_weight:
        raise UserError(
            "--bn-weight cannot be used with --dp-eps: BatchNorm statistics are not private; "
            "leave it out"
        )
    model = dataclasses.replace(config.model, models=_models(config))
    if model.norm == "auto" and _any_norm(config):
        model = dataclasses.replace(model, norm="group" if config.private_training else "batch")
    data = dataclasses.replace(config.data, validation=0.0) if private else config.data
    return dataclasses.replace(
        config,
        dream=_resolved_dreams(config),
        model=model,
        data=data,
        privacy=_resolved_privacy(config),
    )


def _check_private_clients(config: Config) -> None:
    if not config.private_clients:
        return
    if not (config.secure.secure and config.dream.collaboration):
        raise UserError(
            "--dp-unit client needs masks and collaboration: alone, a client's share of noise "
            "protects nobody"
        )
    if config.dream.method != "codream" or config.dream.dream_optimizer == "avg":
        raise UserError(
            "--dp-unit client needs --method codream, and --dream-optimizer adam or fedadam: "
            "dreams are made without asking clients"
        )


def _resolved_privacy(config: Config) -> PrivacyConfig:
    privacy = config.privacy
    if privacy.dp_eps is None or privacy.statistics_eps is not None:
        return privacy
    together = "statistics_eps" not in inapplicable(config)
    most, part = _STATISTICS
    chosen = min(most, part * privacy.dp_eps) if together else 0.0
    return dataclasses.replace(privacy, statistics_eps=chosen)


def _resolved_dreams(config: Config) -> DreamConfig:
    dream = config.dream
    constants = _constants(config)
    if dream.dream_optimizer == "avg":
        constants = constants | {"dream_lr": 1.0}
    if not dream.bn_weight and config.private:
        constants = constants | {"statistics_momentum": 0.0}
    unused = inapplicable(config)
    chosen = {
        name: value
        for name, value in constants.items()
        if getattr(dream, name) is None and name not in unused
    }
    return dataclasses.replace(dream, **chosen)  # type: ignore[arg-type]


def label_temperature(config: Config) -> float:
    """Return the temperature of labels and distillation.

    Under client-level DP it is 1: softer labels would be smaller beside the same noise.
    """
    return 1.0 if config.private_clients else config.learning.kd_temperature
