# %% [markdown]
# # Your own Flax model
#
# Any model whose parameters are a pytree can be used: split it into structure and parameters, and merge them in the
# loss. This page uses `flax.nnx`; the last section shows what to write for `flax.linen`, Equinox and Haiku.

# %%
import os

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import jax.numpy as jnp
from flax import nnx

import sdelens as sl

# %% [markdown]
# ## The model and its data
#
# The model is a small network for the handwritten digits of scikit-learn. It uses 96 of them, as equally distributed
# over the classes as possible. Dropout and batch normalisation cannot be used, because a loss must be deterministic,
# and the loss of an example must not depend on the other examples. Both are refused with a message.

# %%
images, digits = sl.load_dataset("digits", subset=96)
images = images.reshape(len(images), -1)


class Network(nnx.Module):
    """One hidden layer."""

    def __init__(self, rngs):
        self.first = nnx.Linear(images.shape[1], 16, rngs=rngs)
        self.second = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):  # noqa: D102
        return self.second(nnx.relu(self.first(x)))


structure, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)


def loss(params, data):
    """The cross-entropy of each example."""
    x, y = data
    logits = nnx.merge(structure, params)(x)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]


problem = sl.Problem(loss, params, (images, digits), infimum=0.0)

# %% [markdown]
# ## Adam and its SDE under real mini-batches
#
# Further quantities are recorded as functions of the parameters; here it is the accuracy.


# %%
def accuracy(params):
    """The share of digits that are classified correctly."""
    return jnp.mean(jnp.argmax(nnx.merge(structure, params)(images), axis=1) == digits)


result = sl.compare(
    problem,
    sl.MinibatchNoise(16),
    sl.AdamW(lr=3e-3, b2=0.99),
    steps=100,
    paths=32,
    record=sl.Record(every=5, observables={"accuracy": accuracy}),
)
result

# %% alt="Mean loss of Adam on the digits: the curve of its SDE coincides, and that of the earlier SDE lies below"
result.plot()

# %% alt="Mean accuracy of Adam and its SDEs"
result.of("accuracy").plot()

# %% [markdown]
# ## Any optimizer of optax
#
# The SDE need not be known in closed form: for any optax transformation it is computed from the update.

# %%
import optax

mine = sl.FromOptax(lambda lr: optax.chain(optax.clip_by_global_norm(1.0), optax.lion(lr)), lr=1e-3)
sl.compare(problem, sl.MinibatchNoise(16), mine, steps=100, paths=32, record=sl.Record(every=10))

# %% [markdown]
# ## Linen, Equinox, Haiku
#
# - `flax.linen`: `params = model.init(key, images)`, and `model.apply(params, x)` in the loss.
# - Equinox: the module itself is the pytree: `sl.Problem(loss, model, data)` with `jax.vmap(model)(x)` in the loss.
# - Haiku: `params = model.init(key, images)`, and `model.apply(params, None, x)`.
#
# [`sl.network`](../networks.md) provides ready-made networks. The page on [any optimizer](../any-optimizer.md)
# describes the method and its accuracy.
