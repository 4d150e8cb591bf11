"""What runs and predictions return: datasets with tables, tracking statistics, figures and reports; without JAX."""
