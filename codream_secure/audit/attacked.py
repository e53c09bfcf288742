"""Which federation an audit attacks. This needs no PyTorch, so that bad input is told at once."""

from collections.abc import Mapping
from pathlib import Path

from codream_secure.config.aliases import option
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.storage.looking import is_file
from codream_secure.storage.toml import load_toml


def attacked(run: Path | None, given: Mapping[str, object]) -> Config:
    """Return the configuration of the federation that is attacked.

    Args:
        run: folder of a run; the federation is built as it was. None: `given` says what is built.
        given: settings by flat name.

    Raises:
        UserError: there is no such run, or options that contradict it.
    """
    if run is None:
        return Config.from_options({"models": "mlp", "seed": 0, "dp_eps": 8.0, **given})
    if given:
        raise UserError(
            f"{option(min(given))} cannot be used with RUN_DIR: the run says what is attacked"
        )
    if not is_file(run / "config.toml"):
        raise UserError(f"{run} is not the folder of a run")
    options = Config.from_options(load_toml(run / "config.toml")).options()
    return Config.from_options({**options, "seed": options["seed"] or 0})
