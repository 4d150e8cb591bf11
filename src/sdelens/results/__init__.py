"""What runs and predictions return: datasets with tables, statistics of tracking, pictures and reports; without JAX."""
