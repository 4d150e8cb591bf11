# %% [markdown]
# # Private training
#
# DP-SGD clips the gradient of every example to norm C, averages them over a batch of B examples, and adds normal noise
# with the standard deviation sC/B, where s is the noise multiplier: the stronger the privacy, the larger is s (roughly
# s ∝ 1/ε). DP-SignSGD takes the sign of the same gradient. What the noise costs, and how it changes the speed, was
# studied by SDEs in [arXiv 2603.03226](https://arxiv.org/abs/2603.03226). This tutorial reproduces its main comparison
# on least squares: at fixed hyperparameters the loss of DP-SGD grows like s², that of DP-SignSGD only like s, while
# DP-SignSGD slows down by 1/s and DP-SGD does not.

# %%
import os

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sdelens as sl

rng = np.random.default_rng(0)
features = rng.normal(size=(32, 3)).astype(np.float32)
labels = (features @ np.array([1.0, -1.0, 0.5]) + 0.3 * rng.normal(size=32)).astype(np.float32)
best = np.linalg.lstsq(features, labels)[0]
least = float(np.mean(0.5 * (features @ best - labels) ** 2))


def loss(w, data):
    """Half of the squared residual of every example."""
    x, y = data
    return 0.5 * (x @ w - y) ** 2


problem = sl.Problem(loss, jnp.asarray(best + 0.5), (features, labels), infimum=least)

# %% [markdown]
# ## The optimizer and its SDE
#
# `DPNoise` is the law of the private gradient. Its mean is not ∇f but the mean of the clipped gradients, and the SDEs
# use that mean, the covariance of clipped mini-batches, and the normal noise:

# %%
noise = sl.DPNoise(sl.MinibatchNoise(8), clip=3.0, multiplier=1.0)
for optimizer in (sl.SGD(lr=0.02), sl.SignSGD(lr=0.02)):
    record = sl.Record(every=10)
    row = sl.compare(problem, noise, optimizer, steps=100, paths=256, record=record).errors().loc["sde"]
    print(f"DP-{optimizer.name:8} error of the SDE's mean loss at most {100 * row.error_upper:.1f} % (99 % limit)")

# %% [markdown]
# ## More and more noise
#
# `clip` and `multiplier` are numbers of the specification, so that all values are run by one compiled program.

# %%
multipliers = [1.0, 2.0, 4.0, 8.0]
options = dict(over={"noise.multiplier": multipliers}, steps=800, paths=48, record=sl.Record(every=5))
runs = {
    "DP-SGD": sl.sweep(problem, noise, sl.SGD(lr=0.02), **options),
    "DP-SignSGD": sl.sweep(problem, noise, sl.SignSGD(lr=0.02), **options),
}
at_rest, half = {}, {}


def halfway(time, curve, rest):
    """The time at which a curve has come halfway from its start to its value at rest."""
    level = (curve[0] + rest) / 2
    k = int(np.argmax(curve < level))
    return time[k - 1] + (curve[k - 1] - level) / (curve[k - 1] - curve[k]) * (time[k] - time[k - 1])


for name, run in runs.items():
    curves, time = (run.dataset.loss_mean - least).transpose("model", ..., "step").values, run.dataset.time.values
    at_rest[name] = curves[..., -60:].mean(axis=-1)
    half[name] = np.array(
        [
            [halfway(time, *one) for one in zip(curves[i], at_rest[name][i], strict=True)]
            for i in range(len(run.dataset.model))
        ]
    )
    slope = np.polyfit(np.log(multipliers), np.log(at_rest[name][0]), 1)[0]
    print(f"{name:10} excess loss at rest grows like s^{slope:.2f}; halfway at times", half[name][0].round(2))

# %% [markdown]
# DP-SGD is the better one where there is little noise, DP-SignSGD where there is much. The SDEs (crosses) lie on the
# optimizers (lines).

# %% alt="Excess loss at rest against s: slope 2 for DP-SGD, 1 for DP-SignSGD; and their speeds, of which one falls"
colours = {"DP-SGD": "#0072B2", "DP-SignSGD": "#D55E00"}
with sl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
    for name, colour in colours.items():
        models = list(runs[name].dataset.model.values)
        for axes, values in ((left, at_rest[name]), (right, half[name])):
            axes.plot(multipliers, values[models.index("optimizer")], color=colour, marker="o", label=name)
            axes.plot(multipliers, values[models.index("sde")], color="black", marker="x", linestyle="none")
    s = np.array(multipliers)
    for name, power in (("DP-SGD", 2), ("DP-SignSGD", 1)):
        reference = at_rest[name][0, -1] * (s / s[-1]) ** power
        left.plot(s, reference, color="0.6", linestyle=(0, (1, 1.5)), zorder=0)
    left.set(xscale="log", yscale="log", xlabel="noise multiplier $s$", ylabel="excess loss at rest")
    right.set(xscale="log", xlabel="noise multiplier $s$", ylabel="time to come halfway", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(multipliers, [f"{s:g}" for s in multipliers])
        axes.minorticks_off()
    left.legend(title="optimizer (SDE: ×)")

# %% [markdown]
# Privacy budgets are not computed here: libraries such as dp-accounting give ε from the multiplier, the sampling rate
# and the number of steps.
