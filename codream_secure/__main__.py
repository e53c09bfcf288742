"""Run the command line as ``python -m codream_secure``."""

from codream_secure.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
