"""Numbers as people read them."""

from rich.console import Console

UNKNOWN = "-"


def percent(value: float | None) -> str:
    """Return a fraction as a percentage."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def size(count: float | None) -> str:
    """Return bytes in decimal units."""
    if count is None:
        return UNKNOWN
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with so many decimals, none where it is whole."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value == int(value) else f"{value:,.{digits}f}"


# A pipe or a file has no width; rich would take 80 columns and cut headings.
_PIPED_WIDTH = 160


def stdout(*, quiet: bool = False) -> Console:
    """Return the console of standard output, wide where nobody's window limits it."""
    console = _console(stderr=False, quiet=quiet)
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    return console


def stderr(*, quiet: bool) -> Console:
    """Return the console of standard error."""
    return _console(stderr=True, quiet=quiet)


def _console(*, stderr: bool, quiet: bool) -> Console:
    """Return a console that prints texts as they are: a name in brackets is no style."""
    return Console(
        stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=stderr
    )
