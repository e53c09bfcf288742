"""Attacks and measurements that privacy claims must survive."""
