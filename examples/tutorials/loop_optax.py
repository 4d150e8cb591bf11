# %% [markdown]
# # In an optax loop, with Flax
#
# A gradient transformation keeps two sums per leaf and micro-batch; from them follow the noise scale, a verdict and
# advice. The training step stays one compiled function.

# %%
import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import sdelens as sl
from sdelens.callbacks import add_stack, measure, noise_of, noise_sums

# %% [markdown]
# ## A model and its optimizer
#
# The transformation stands before what accumulates: `optax.MultiSteps` averages four micro-batches of 8 digits.

# %%
images, digits = sl.load_dataset("digits")
images, digits = jnp.asarray(images.reshape(len(images), -1) / 16.0, jnp.float32), jnp.asarray(digits)
adamw = {"b1": 0.9, "b2": 0.99, "weight_decay": 1e-4}


class Network(nnx.Module):
    """One hidden layer."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):  # noqa: D102
        return self.second(nnx.relu(self.first(x)))


structure, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
steps = optax.MultiSteps(optax.adamw(1e-3, **adamw), every_k_schedule=4)
tx = optax.chain(noise_sums(4, windows=40), steps.gradient_transformation())
state = tx.init(params)


def loss(params, x, y):
    """The mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(structure, params)(x), y).mean()


@jax.jit
def micro_step(params, state, key):
    """One micro-batch; every fourth changes the parameters."""
    rows = jax.random.randint(key, (8,), 0, len(images))
    gradient = jax.grad(loss)(params, images[rows], digits[rows])
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


# %% [markdown]
# ## The loop
#
# Every 100 steps the sums are read, and the numbers are logged.

# %%
key = jax.random.key(0)
for step in range(1, 301):
    for i in range(4):
        params, state = micro_step(params, state, jax.random.fold_in(key, 4 * step + i))
    if step % 100 == 0:
        noise = noise_of(state, batch_size=8)
        found = measure(noise, step, state, {"optimizer": "adamw", "lr": 1e-3, **adamw}, **adamw)
        print(step, {name: float(f"{value:.3g}") for name, value in found.numbers.items()})

# %%
print(found.text)

# %% [markdown]
# ## Gradients of single examples
#
# If the gradients of all examples of a batch come as one stack, `add_stack` takes them at once. No optimizer is needed:


# %%
@jax.jit
def of_examples(params, state, key):
    """Add the gradients of 32 examples."""
    rows = jax.random.randint(key, (32,), 0, len(images))
    each = jax.vmap(functools.partial(jax.grad(loss), params))(images[rows, None], digits[rows, None])
    return add_stack(state, each)


sums = noise_sums(32, windows=10).init(params)
for i in range(10):
    sums = of_examples(params, sums, jax.random.fold_in(key, i))
noise_of(sums, batch_size=1, groups={"first": "first", "second": "second"})

# %% [markdown]
# The page on [training loops](../training-loops.md) has the details.
