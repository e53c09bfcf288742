"""The one reader of TOML files."""

import tomllib
from pathlib import Path
from typing import Any

from codream_secure.errors import UserError


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file: UTF-8, with or without a byte order mark.

    Raises:
        UserError: the file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not a TOML file: its values are nested too deeply") from None
