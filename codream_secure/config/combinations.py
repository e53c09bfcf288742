"""Which options can be combined."""

from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

from codream_secure.config.aliases import option
from codream_secure.config.concerns import PrivacyConfig
from codream_secure.config.settings import Config, any_norm, constants, settings
from codream_secure.errors import UserError

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
MESSENGER_ONLY = (
    "messenger",
    "messenger_sums",
    "messenger_steps",
    "messenger_bits",
    "messenger_mix",
)
# What only requests for gradients of dreams need.
GRADIENTS_ONLY = (
    "bits",
    "local_steps",
    "local_size",
    "adaptive",
    "adaptive_weight",
    "adaptive_start",
    "adaptive_bits",
)
# What clients do that are asked for nothing but noisy sums.
WITHOUT_NOISE = (
    "dp_batch",
    "dp_warmup",
    "secure_noise",
    "statistics_weight",
    "labels",
    "label_bits",
    "label_clip",
    "label_weighting",
)
# The same, and what lets clients count by examples.
WITHOUT_MESSENGER = (*GRADIENTS_ONLY, "parallel_batches", "weights", "weight_cap")


class Rule(NamedTuple):
    """Options that mean something only where ``applies`` holds; ``reason`` says why not."""

    names: tuple[str, ...]
    applies: Callable[[Config], bool]
    reason: str


_RULES = (
    Rule(
        # Under DP `dp_steps` and `dp_batch` say how much is learned: its noise is for them.
        ("batch", "warmup_epochs", "local_epochs"),
        lambda c: not c.private_training,
        "cannot be used with --dp-eps; use --dp-steps or --dp-batch",
    ),
    Rule(
        ("optimizer", "weight_decay", "schedule", "augment", "kd_statistics"),
        lambda c: not c.private_training,
        "cannot be used with --dp-eps: local steps are DP-SGD",
    ),
    Rule(
        ("local_loss",),
        lambda c: not c.private_training,
        "cannot be used with --dp-eps: class frequencies are private",
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
        GRADIENTS_ONLY,
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
    Rule(
        MESSENGER_ONLY,
        lambda c: c.has_common_model,
        "needs --method codream-messenger",
    ),
    Rule(
        (*MESSENGER_ONLY[1:], *WITHOUT_NOISE),
        lambda c: not c.has_noisy_model,
        "cannot be used with --method codream-messenger and --dp-eps: noisy sums train the common "
        "model, and it labels",
    ),
    Rule(
        ("keep_models_home",),
        lambda c: c.has_noisy_model,
        "needs --method codream-messenger with --dp-eps: elsewhere clients' models are asked",
    ),
    Rule(
        WITHOUT_MESSENGER,
        lambda c: not c.has_common_model,
        "cannot be used with --method codream-messenger: no gradient is asked for, and all clients "
        "count alike",
    ),
    Rule(("norm",), any_norm, "changes none of --models; leave it out"),
    Rule(
        ("label_last_step",),
        lambda c: c.dream.dream_steps != 0,
        "cannot be used with --dream-steps 0: there is no last step",
    ),
    Rule(
        PIXELS_ONLY,
        lambda c: c.dream.method != "codream-fast",
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
        ("adaptive",),
        lambda c: c.learning.weights == "equal",
        "cannot be used with --weights examples: the student's part would tell the sum of weights",
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
        ("statistics_eps", "statistics_weight", "noise_colluders", "dp_noise"),
        lambda c: c.secure.secure and c.dream.collaboration,
        "needs masks and collaboration: a client's share of the noise alone protects nobody",
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
        ("threat_model", "graph"),
        lambda c: c.secure.secure,
        "cannot be used with --no-secure",
    ),
    Rule(
        ("graph_corrupt", "graph_silent"),
        lambda c: c.secure.graph != "complete",
        "needs --graph ring, chosen or auto",
    ),
    Rule(
        ("rejoin",),
        lambda c: c.secure.threat_model == "malicious",
        "needs --threat-model malicious; else clients may always be back",
    ),
    Rule(
        ("threat_model", "threshold", "key_steps", "dropout", "graph"),
        lambda c: c.dream.collaboration,
        "cannot be used with --no-collaboration: nothing is aggregated",
    ),
)


def _batches(config: Config) -> float:
    return config.dream.dream_batches or constants(config)["dream_batches"]


def inapplicable(config: Config) -> dict[str, str]:
    """Return the options that mean nothing here, with the reason."""
    return {name: rule.reason for rule in _RULES if not rule.applies(config) for name in rule.names}


def check_applicable(config: Config) -> None:
    """Refuse options that would be accepted and ignored.

    Raises:
        UserError: names the first one.
    """
    reasons, values = inapplicable(config), config.options()
    for setting in settings():
        # 0 asks for nothing, and is what `resolve` fills in where an option means nothing. But
        # False (`--no-…`), which equals 0, asks for something where True is the default.
        value = values[setting.name]
        chosen = value != setting.default and (value is False or value != 0)
        if chosen and setting.name in reasons:
            raise UserError(f"{option(setting.name)} {reasons[setting.name]}")
