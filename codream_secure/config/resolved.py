"""A run's settings after every default was filled in: the type that all rooms below take.

A `Resolved` comes from `codream_secure.config.rules.resolve` alone. Its fields narrow those of
`Config`: what a rule fills in is no longer optional. What is still None was not chosen and needs
no value (a threshold, a seed that nobody gave).
"""

from dataclasses import dataclass

from codream_secure.config.combinations import inapplicable
from codream_secure.config.concerns import DreamConfig, PrivacyConfig
from codream_secure.config.settings import Config, settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedDreams(DreamConfig):
    """How dreams are made."""

    rounds: int
    dreams: int
    dream_batches: int
    dream_steps: int
    dream_lr: float
    bn_weight: float
    statistics_momentum: float
    prior_correction: float

    @property
    def syntheses(self) -> int:
        """How many syntheses a round has, one after another."""
        return 1 if self.parallel_batches else self.dream_batches

    @property
    def sums_per_synthesis(self) -> int:
        """How many sums a synthesis takes: its steps, and one for labels."""
        return self.dream_steps + (not self.label_last_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPrivacy(PrivacyConfig):
    """Differential privacy; ``statistics_eps`` is 0 where no class means are released."""

    statistics_eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedDp(ResolvedPrivacy):
    """Differential privacy of a run that has it."""

    dp_eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(Config):
    """All settings of a run, with every default filled in."""

    dream: ResolvedDreams
    privacy: ResolvedPrivacy

    def options(self) -> dict[str, object]:
        """Return all settings by their flat names; `Config.from_options` takes them again.

        An option that means nothing in this run is None if None is its default, so that nobody
        refuses it as chosen.
        """
        values, unused = Config.options(self), inapplicable(self)
        return {
            one.name: None if one.default is None and one.name in unused else values[one.name]
            for one in settings()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRun(Resolved):
    """All settings of a run under differential privacy."""

    privacy: ResolvedDp
