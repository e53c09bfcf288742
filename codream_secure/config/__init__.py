"""Settings of a run, and the rules that fill in defaults which depend on other settings."""
