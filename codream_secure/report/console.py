"""Where tables are printed."""

from rich.console import Console

# A pipe or a file has no width; rich would take 80 columns and cut headings.
_PIPED_WIDTH = 160


def stdout() -> Console:
    """Return the console of standard output, wide where nobody's window limits it."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    return console
