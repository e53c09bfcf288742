"""Several methods over the same data, seeds and evaluation, at equal cost."""
