"""What a person sees of a run: progress, table, pictures, the run folder."""
