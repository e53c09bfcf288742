"""Differential privacy: accounting, DP-SGD and the plan of a run."""
