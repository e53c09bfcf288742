"""Matplotlib by the project's own settings; all other modules draw inside `own_settings`.

The user's settings are for the user's pictures: a notebook's backend, or text set by a LaTeX that
is not installed, would end a run after its work. `pyplot` is never imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from codream_secure.errors import UserError

try:
    import matplotlib as mpl
except (OSError, UnicodeDecodeError):  # of a matplotlibrc, which importing it reads
    raise UserError("the matplotlibrc here is no text or unreadable; remove it") from None


@contextmanager
def own_settings() -> Iterator[None]:
    """Draw by matplotlib's built-in settings inside the block, whatever a matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        yield
