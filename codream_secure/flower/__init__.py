"""The same run over many machines: Flower carries the bytes, and nothing else changes."""
