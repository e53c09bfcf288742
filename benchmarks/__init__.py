"""Scripts that measure the project. Run one as `python -m benchmarks.FOLDER.SCRIPT`."""
