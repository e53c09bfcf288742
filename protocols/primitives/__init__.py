"""Arithmetic and cryptography that know nothing of clients, servers and rounds (SPEC 3, 4)."""
