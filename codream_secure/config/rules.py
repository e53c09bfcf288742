"""Fill in the defaults that depend on other settings; the result is a type of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tomli_w

from codream_secure.config.combinations import check_applicable, inapplicable
from codream_secure.config.concerns import DreamConfig
from codream_secure.config.resolved import (
    PrivateRun,
    Resolved,
    ResolvedDp,
    ResolvedDreams,
    ResolvedPrivacy,
)
from codream_secure.config.settings import Config, any_norm, constants, models_of
from codream_secure.errors import UserError

# By default class means may cost this much epsilon, and at most this part of the whole budget. The
# rest is for training, whose noise would otherwise grow without bound.
_MOST_FOR_MEANS, _MOST_OF_BUDGET = 4.0, 0.9
# With a common model class means would cost this part of epsilon alone: about a fifth of what the
# budget allows in (sensitivity / noise)^2. Tried on one or two folds of the digits alone.
_MEANS_BESIDE_MESSENGER = 0.4


def resolve(config: Config) -> Resolved:
    """Fill in every default that depends on another setting.

    Returns:
        A `PrivateRun` under differential privacy. What is resolved already is returned as it is.

    Raises:
        UserError: settings that contradict each other.
    """
    if isinstance(config, Resolved):
        return config
    _check_norms(config)
    check_applicable(config)
    _check_flips(config)
    _check_private_clients(config)
    _check_messenger(config)
    _check_graph(config)
    model = dataclasses.replace(config.model, models=models_of(config))
    if model.norm == "auto" and any_norm(config):
        model = dataclasses.replace(model, norm="group" if config.private_training else "batch")
    parts = {
        **_fields(config),
        "model": model,
        "dream": ResolvedDreams(**_resolved_dreams(config)),
    }
    if config.privacy.dp_eps is None:
        privacy = ResolvedPrivacy(**{**_fields(config.privacy), "statistics_eps": 0.0})
        return Resolved(**{**parts, "privacy": privacy})
    chosen = _statistics_eps(config, config.privacy.dp_eps)
    private = ResolvedDp(**{**_fields(config.privacy), "statistics_eps": chosen})
    data = dataclasses.replace(config.data, validation=0.0)
    return PrivateRun(**{**parts, "privacy": private, "data": data})


def with_default_method(given: Mapping[str, object]) -> Mapping[str, object]:
    """Return options with the method that `simulate` takes where none is named.

    Under example-level DP that is codream-messenger, whose sums over everybody cost each client
    least. Where an option is given that it does not have, it is codream, as without DP.

    Args:
        given: values by name; None stands for "not given".
    """
    if given.get("method") is not None or given.get("dp_eps") is None:
        return given
    tried = {**given, "method": "codream-messenger"}
    try:
        resolve(Config.from_options(tried))
    except UserError:
        return given
    return tried


def _fields(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass; not deep, as `asdict`
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}


def _check_norms(config: Config) -> None:
    """Refuse what would release BatchNorm statistics, which no accountant counts."""
    if config.private_training and config.model.norm == "batch":
        raise UserError(
            "--norm batch cannot be used with --dp-eps: batch statistics are not private; "
            "use --norm group"
        )
    if config.private and config.dream.bn_weight:
        raise UserError(
            "--bn-weight cannot be used with --dp-eps: BatchNorm statistics are not private; "
            "leave it out"
        )


def _check_flips(config: Config) -> None:
    """Refuse to mirror digits and letters: a mirrored one is another sign or none."""
    if config.data.dataset not in ("digits", "mnist", "emnist", "svhn"):
        return
    chosen = {"augment": config.learning.augment, "dream-augment": config.learning.dream_augment}
    for name, how in chosen.items():
        if how in ("flip-crop", "randaugment"):
            raise UserError(
                f"--{name} {how} mirrors images, and a mirrored sign of {config.data.dataset} is "
                f"another sign or none; use --{name} crop"
            )


def _check_private_clients(config: Config) -> None:
    if not config.private_clients:
        return
    if not (config.secure.secure and config.dream.collaboration):
        raise UserError(
            "--dp-unit client needs masks and collaboration: a client's share of the noise alone "
            "protects nobody"
        )
    if config.dream.method != "codream" or config.dream.dream_optimizer == "avg":
        raise UserError(
            "--dp-unit client needs --method codream, and --dream-optimizer adam or fedadam: "
            "dreams are made without asking clients"
        )


def _check_messenger(config: Config) -> None:
    if not config.has_common_model:
        return
    if not config.dream.collaboration:
        raise UserError("--method codream-messenger cannot be used with --no-collaboration")
    if config.private and not config.secure.secure:
        raise UserError(
            "--method codream-messenger with --dp-eps needs masks: a client's share of the noise "
            "alone protects nobody"
        )
    if config.private and config.privacy.dp_noise != "gaussian":
        raise UserError("--method codream-messenger needs --dp-noise gaussian: the bound is for it")
    if config.dream.dream_optimizer == "avg":
        raise UserError(
            "--dream-optimizer avg cannot be used with --method codream-messenger: no client moves "
            "dreams"
        )


def _check_graph(config: Config) -> None:
    """Refuse a graph that protects nobody in the run's threat model, or under its noise."""
    graph, malicious = config.secure.graph, config.secure.threat_model == "malicious"
    if graph == "ring" and malicious:
        raise UserError(
            "--graph ring is not safe against a server that chooses who drops out: use --graph "
            "chosen or complete with --threat-model malicious"
        )
    if graph == "chosen" and not malicious:
        raise UserError("--graph chosen needs --threat-model malicious: else use --graph ring")
    if graph == "chosen" and config.private:
        raise UserError(
            "--graph chosen cannot be used with --dp-eps: a server can leave clients, and with "
            "them their noise, out of a sum unseen; use --graph complete"
        )


def _statistics_eps(config: Config, dp_eps: float) -> float:
    """Return the part of epsilon that class means cost; 0 where none are released."""
    if config.privacy.statistics_eps is not None:
        return config.privacy.statistics_eps
    if "statistics_eps" in inapplicable(config):
        return 0.0
    if config.has_noisy_model:
        return _MEANS_BESIDE_MESSENGER * dp_eps
    return min(_MOST_FOR_MEANS, _MOST_OF_BUDGET * dp_eps)


def _resolved_dreams(config: Config) -> dict[str, Any]:
    dream: DreamConfig = config.dream
    defaults = dict(constants(config))
    if dream.dream_optimizer == "avg":
        defaults["dream_lr"] = 1.0
    if not dream.bn_weight and config.private:
        defaults["statistics_momentum"] = 0.0
    chosen = {name: value for name, value in _fields(dream).items() if value is not None}
    return defaults | chosen


def to_toml(config: Config) -> str:
    """Return a TOML text from which `load_toml` gives this configuration again."""
    left_out = inapplicable(config)
    options = config.options().items()
    return tomli_w.dumps({k: v for k, v in options if v is not None and k not in left_out})


def label_temperature(config: Config) -> float:
    """Return the temperature of labels and distillation.

    Under client-level DP it is 1: softer labels would be smaller beside the same noise.
    """
    return 1.0 if config.private_clients else config.learning.kd_temperature
