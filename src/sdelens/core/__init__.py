"""What knows nothing of optimizers: argument checks, pytrees, random numbers, names, files, compiler options.

`names`, `check` and `files` import no JAX.
"""
