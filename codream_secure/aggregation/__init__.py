"""Sums of client answers: requests, settings, and aggregators with and without masks."""
