"""Two CPU devices for every test, chosen before JAX starts; one BLAS thread, since tests run side by side."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
