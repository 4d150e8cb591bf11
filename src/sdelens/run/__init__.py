"""Running ensembles: options, experiments and grids, segments on the devices, statistics, checkpoints, processes."""
