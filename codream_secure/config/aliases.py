"""Old names of options, which keep working for one release, and names that others use."""

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches

from codream_secure.errors import UserError

# Old name: new name, both with underscores. An entry lives for one release and is then deleted;
# the command line, TOML files, run folders and Flower's run config all look here.
ALIASES: dict[str, str] = {"side_by_side": "parallel_batches"}

# What other programs call an option, and what it may be here. Suggested, never taken.
_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "alpha": ("partition",),
    "arch": ("models",),
    "architecture": ("models",),
    "architectures": ("models",),
    "batch_size": ("batch",),
    "config_file": ("config",),
    "data": ("dataset",),
    "delta": ("dp_delta",),
    "eps": ("dp_eps",),
    "epsilon": ("dp_eps",),
    "epochs": ("local_epochs", "warmup_epochs"),
    "gpu": ("device",),
    "lr": ("learning_rate",),
    "max_grad_norm": ("dp_clip",),
    "model": ("models",),
    "momentum": ("optimizer",),
    "noise_multiplier": ("dp_eps",),
    "num_clients": ("clients",),
    "num_rounds": ("rounds",),
    "n_clients": ("clients",),
    "output": ("out",),
    "output_dir": ("out",),
    "strategy": ("method",),
    "algorithm": ("method",),
    "temperature": ("kd_temperature",),
    "verbose": ("quiet",),
    "wd": ("weight_decay",),
}


def option(name: str) -> str:
    """Return how an option is written on the command line."""
    return "--" + name.replace("_", "-")


def near(name: str, known: Collection[str]) -> list[str]:
    """Return names of options that somebody may have meant, the likeliest first; three at most.

    Args:
        name: what was written, with underscores.
        known: the names that there are.
    """
    named = [one for one in _ELSEWHERE.get(name, ()) if one in known]
    return named or get_close_matches(name, sorted(known), n=3)


def current_names(
    options: Mapping[str, object], tell: Callable[[str], None] | None = None
) -> dict[str, object]:
    """Replace old names of options by current ones.

    Args:
        options: values by flat name; None stands for "not given".
        tell: is called with one line for every old name that was given.

    Raises:
        UserError: an option is given under its old and its new name.
    """
    found = dict(options)
    for old, new in ALIASES.items():
        value = found.pop(old, None)
        if value is None:
            continue
        if found.get(new) is not None:
            raise UserError(f"{option(old)} is the old name of {option(new)}: give one of them")
        found[new] = value
        if tell is not None:
            tell(
                f"note: {option(old)} is now called {option(new)}; "
                "the next release drops the old name"
            )
    return found
