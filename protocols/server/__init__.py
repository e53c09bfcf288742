"""The server: the offline exchange, the steps, and the session that runs them."""
