"""Run folders: written while a run goes on, and read back."""
