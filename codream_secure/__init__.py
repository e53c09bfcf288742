"""codream-secure: collaborative dream synthesis in which the server learns nothing but sums."""

from codream_secure._version import __version__

__all__ = ["__version__"]
