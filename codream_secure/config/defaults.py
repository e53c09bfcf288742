"""Defaults that depend on the method and on the unit of privacy."""

from collections.abc import Mapping

from codream_secure.config.options import Setting
from codream_secure.config.settings import Config
from codream_secure.models.names import MODEL_NAMES, WITHOUT_NORM

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
_PRIVATE = _PLAIN | {
    "rounds": 3,
    "dreams": 256,
    "dream_steps": 10,
    "dream_lr": 0.05,
    "bn_weight": 0.0,
    "prior_correction": 0.0,
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


def constants(config: Config) -> Mapping[str, float]:
    """Return the defaults of this method and this unit of privacy, by the option's name."""
    if config.private_clients:
        return _PLAIN | _PRIVATE_CLIENTS
    fast = _FAST if config.dream.method == "codream-fast" else _PLAIN
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
