"""Settings that go together, a TOML file each; `--preset` takes their names."""

from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from typing import Any

from codream_secure.errors import UserError
from codream_secure.storage.toml import load_toml

PRESETS = ("digits", "small-images", "cifar", "private")


def preset_text(name: str) -> str:
    """Return a preset as TOML, with comments.

    Raises:
        UserError: there is none of this name.
    """
    return _file(name).read_text(encoding="utf-8")


def preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset, with underscores.

    Raises:
        UserError: there is none of this name.
    """
    with as_file(_file(name)) as path:
        return load_toml(path)


def _file(name: str) -> Traversable:
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return files(__package__) / "preset_files" / f"{name}.toml"
