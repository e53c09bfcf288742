"""The library's public functions: what the command line does, for Python."""
