"""Whose noise counts in a sum with shares of noise: that of honest clients who stay (SPEC D8)."""

from codream_secure.aggregation.settings import AggregationSettings, colluders
from codream_secure.config.resolved import Resolved
from codream_secure.errors import UserError


def noise_colluders(config: Resolved) -> int:
    """Return n_C, the clients of a sum that may tell the server their share of noise.

    Unless it is set, it is 1, or what the threshold bears in the malicious model.

    Raises:
        UserError: it is not below the threshold, so that no secret noise is left.
    """
    settings, chosen = _settings(config), config.privacy.noise_colluders
    if chosen is None:
        chosen = colluders(settings) if settings.threat_model == "malicious" else 1
    if chosen >= settings.needed:
        raise UserError(
            f"--noise-colluders must be below the threshold of {settings.needed}, not {chosen}: "
            "somebody's noise must be secret"
        )
    return chosen


def secret_shares(config: Resolved) -> int:
    """Return t - n_C, the shares of noise that are secret in every sum.

    Raises:
        UserError: there would be none.
    """
    # A sum over fewer than t clients is aborted, so t shares are in it at least. The server can
    # subtract the shares of n_C colluders; only the other t - n_C hide the vectors.
    return _settings(config).needed - noise_colluders(config)


def _settings(config: Resolved) -> AggregationSettings:
    secure = config.secure
    return AggregationSettings(
        roster=tuple(range(config.data.clients)),
        threshold=secure.threshold,
        threat_model=secure.threat_model,
    )
