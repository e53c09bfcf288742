"""How one participant learns: from its own data, and from dreams."""
