"""Whose noise counts: in a sum with shares of noise, that of honest clients who stay (D8)."""

from codream_secure.aggregation.settings import AggregationSettings, colluders
from codream_secure.config.resolved import Resolved
from codream_secure.errors import UserError


def noise_colluders(config: Resolved) -> int:
    """Return how many clients may tell the server their noise; the rest hides the sum.

    Raises:
        UserError: nobody's would be left.
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


def hidden_shares(config: Resolved) -> int:
    """Return the shares of noise that are secret if as few clients stay as may.

    Raises:
        UserError: there would be none.
    """
    return _settings(config).needed - noise_colluders(config)


def _settings(config: Resolved) -> AggregationSettings:
    secure = config.secure
    return AggregationSettings(
        roster=tuple(range(config.data.clients)),
        threshold=secure.threshold,
        threat_model=secure.threat_model,
    )
