"""Old names of options, which keep working for one release."""

from collections.abc import Callable, Mapping

from codream_secure.errors import UserError

# Old name: new name, both with underscores. An entry lives for one release and is then deleted;
# the command line, TOML files, run folders and Flower's run config all look here.
ALIASES: dict[str, str] = {"side_by_side": "parallel_batches"}


def option(name: str) -> str:
    """Return how an option is written on the command line."""
    return "--" + name.replace("_", "-")


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
