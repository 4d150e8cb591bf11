# %% [markdown]
# # From batch 256 to 1024
#
# How do learning rate, b1, b2, eps, weight decay, steps and warm-up change if the batch is four times as large? One
# call computes all of them and gives the reason for each. Then both batch sizes are simulated, to show what the rule
# preserves and how large the error is if a part of it is omitted.

# %%
import dataclasses
import os

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import sdelens as sl

# %% [markdown]
# ## The rule

# %%
small = sl.AdamW(lr=2e-3, b1=0.98, b2=0.998, weight_decay=0.5)
new = sl.scaling.rescale(small, 4, steps=10_000, warmup=500, clip_norm=1.0)
new

# %% [markdown]
# The same from the shell, where JAX is not needed:
#
# ```sh
# sdelens scale adamw --lr 2e-3 --b1 0.98 --b2 0.998 --weight-decay 0.5 --batch 256 --to 1024 --steps 10000 --warmup 500
# ```
#
# and for a live PyTorch optimizer, in place: `sdelens.torch.rescale(optimizer, 4)`.

# %% [markdown]
# ## Does it hold?
#
# `verify` runs both batch sizes and compares them at equal numbers of training examples. Noise dominates here from the
# start: |∂f| is at most half the noise of the larger batch. The full rule is compared with variants in which some of
# its parts are omitted.

# %%
full = new.optimizer
variants = {
    "full rule": full,
    "decay as it was": dataclasses.replace(full, weight_decay=small.weight_decay),
    "b1, b2 as they were": dataclasses.replace(full, b1=small.b1, b2=small.b2),
    "nothing but the steps": small,
}
problem = sl.Quadratic(curvature=[0.5, 1.0, 2.0, 5.0], start=[0.5, 0.25, 0.125, 0.05])
noise = sl.GaussianNoise(scale=1.0)
found = sl.scaling.verify(problem, noise, small, 4, variants, steps=3000, paths=1024)
found

# %% alt="Mean loss at equal numbers of examples: the full rule follows the smaller batch, rules without a part do not"
found.plot()

# %% [markdown]
# ## Where it does not hold
#
# Far from the minimum, the gradient dominates, and Adam's step no longer grows with √B. The table shows this in
# advance: the error *expected* from the signal-to-noise ratio is large.

# %%
far = sl.Quadratic(curvature=[0.5, 1.0, 2.0, 5.0], start=[8.0, 4.0, 2.0, 0.8])
sl.scaling.verify(far, noise, small, 4, {"full rule": full}, steps=3000, paths=512)

# %% [markdown]
# Therefore measure the regime of your own run first: [is my run noise-dominated?](noise_dominated.md) The page on
# [scaling](../scaling.md) lists all rules with their sources and with what they preserve.
