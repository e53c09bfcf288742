"""All settings of a run as the user chose them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codream_secure.config.aliases import current_names
from codream_secure.config.concerns import (
    DataConfig,
    DreamConfig,
    LearningConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    SecureConfig,
)
from codream_secure.config.options import CONCERNS, settings
from codream_secure.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a run; `codream_secure.config.rules.resolve` fills in the open ones."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dream: DreamConfig = field(default_factory=DreamConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    secure: SecureConfig = field(default_factory=SecureConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @staticmethod
    def from_options(options: Mapping[str, object]) -> "Config":
        """Build a configuration from flat names with underscores.

        Args:
            options: values by name; None stands for "not given". Old names
                (`codream_secure.config.aliases`) stand for the current ones.

        Raises:
            UserError: unknown name, wrong type, value out of range.
        """
        known = {setting.name: setting for setting in settings()}
        values: dict[str, dict[str, Any]] = {concern: {} for concern in CONCERNS}
        for name, value in current_names(options).items():
            if name not in known:
                raise UserError(f"unknown setting {name!r}; see codream-secure simulate --help")
            if value is not None:
                values[known[name].concern][name] = known[name].checked(value)
        return Config(**{concern: CONCERNS[concern](**given) for concern, given in values.items()})

    def options(self) -> dict[str, object]:
        """Return all settings by their flat names, None where nothing was chosen."""
        return {one.name: getattr(getattr(self, one.concern), one.name) for one in settings()}

    @property
    def private(self) -> bool:
        """Whether anything is differentially private."""
        return self.privacy.dp_eps is not None

    @property
    def private_training(self) -> bool:
        """Whether local training is private: the unit of privacy is one example."""
        return self.private and self.privacy.dp_unit == "example"

    @property
    def private_clients(self) -> bool:
        """Whether the unit of privacy is one client, so that labels alone are released."""
        return self.private and self.privacy.dp_unit == "client"


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
