"""Other methods of federated learning, for comparison: same data, seeds and evaluation.

Each method has a file of its own; `methods` lists their names, `run` runs them.
"""
