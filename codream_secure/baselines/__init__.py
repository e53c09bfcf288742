"""Other ways to learn together, over the same data, seeds, evaluation and aggregation.

One file a method; `methods` names them, `run` runs them. They exist to be compared with.
"""
