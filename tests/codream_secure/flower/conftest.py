"""Flower is imported once with warnings as they are: its own dependencies give some."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import flwr.app
    import flwr.clientapp
    import flwr.serverapp.strategy  # noqa: F401
