"""Checkpoints and state folders: bytes on disk that survive a crash."""
