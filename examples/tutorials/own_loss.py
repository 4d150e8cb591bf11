# %% [markdown]
# # Your own loss
#
# A problem consists of a function and a pytree of parameters. The example is a robust regression, first with noise that
# is added to its gradient, then with real mini-batches. It shows how to find out whether an SDE describes AdamW on
# *your* loss, and how to read the resulting table.

# %%
import os

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # one device per core; before the first use of JAX

import jax.numpy as jnp
import numpy as np

import sdelens as sl

# %% [markdown]
# ## The loss
#
# The loss function takes parameters and data, and returns **one loss per example**. The parameters can be any pytree:
# here a dictionary, in the next tutorial a model. A loss without data is a function of the parameters alone,
# `sl.Problem(loss, start)`.

# %%
rng = np.random.default_rng(0)
features = rng.standard_normal((200, 5)) * [2.0, 1.5, 1.0, 0.7, 0.5]
targets = features @ [1.0, -2.0, 0.5, 0.0, 1.5] + 0.5 + rng.standard_t(2, 200)  # outliers


def loss(params, data):
    """Pseudo-Huber: quadratic near 0, linear far away."""
    x, y = data
    residual = x @ params["w"] + params["b"] - y
    return jnp.sqrt(1 + residual**2) - 1


start = {"w": jnp.zeros(5), "b": jnp.array(0.0)}
problem = sl.Problem(loss, start, (features.astype(np.float32), targets.astype(np.float32)))

# %% [markdown]
# ## The optimizer and its SDEs
#
# `compare` runs the optimizer itself, through optax, and every first-order SDE that exists for it, with 2000 paths
# each.

# %%
optimizer = sl.AdamW(lr=0.02, b1=0.9, b2=0.99, weight_decay=0.01)
noise = sl.GaussianNoise({"w": 0.5, "b": 0.3})  # a pytree like the parameters, or one number for all
result = sl.compare(problem, noise, optimizer, steps=300, paths=2000, record=sl.Record(every=5))
result

# %% [markdown]
# The columns mean the following. **error** is the distance between the mean-loss curves of a model and of the
# optimizer, without the contribution of Monte-Carlo noise, and with limits. **floor** is the error that a perfect model
# would show with this number of paths: an error near it, or limits that begin at 0, mean that no difference was
# resolved. **last third** is the shift of the mean loss over the last third of the run, and **spread** is the ratio of
# standard deviations over paths. `malladi2022` is the earlier SDE, which neglects the gradient in V.

# %% alt="Mean loss of AdamW on the robust regression: its SDE coincides, the earlier SDE differs; differences below"
result.plot()

# %% [markdown]
# ## Real mini-batches
#
# With data, no noise has to be added: the optimizer draws batches of 8 examples, and the SDE computes their exact
# covariance by one more backward pass.

# %%
real = sl.compare(problem, sl.MinibatchNoise(8), optimizer, steps=300, paths=128, record=sl.Record(every=10))
real

# %% [markdown]
# ## Accessing the numbers
#
# `errors` is a data frame; `dataset` holds every curve, and `save` writes all of it as one NetCDF file.

# %%
real.errors()[["error", "error_lower", "error_upper", "floor", "spread"]].round(4)

# %% [markdown]
# Next: [a Flax model](flax_model.md), or [which SDE and which integrator to use](../choosing.md).
