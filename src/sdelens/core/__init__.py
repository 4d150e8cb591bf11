"""Helpers that use no optimizer code: argument checks, pytrees, random numbers, names, files, compiler options.

`names`, `check` and `files` import no JAX.
"""
