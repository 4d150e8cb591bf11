"""The ways of doing a task, one file a library; each function returns a run of (seed, paths, steps)."""
