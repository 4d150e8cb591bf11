"""Running ensembles: options, experiments, grids, compiled segments, statistics, checkpoints and processes."""
