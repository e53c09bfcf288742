"""Seeds, threads and timing: what every room above may use."""
