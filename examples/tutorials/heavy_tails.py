# %% [markdown]
# # Heavy tails
#
# Gradients of large models can have tails so heavy that their noise has no variance, or not even a mean. SGD then has
# no SDE and no finite loss; SignSGD has both. Student's t with ν degrees of freedom goes from Cauchy noise (ν = 1) to
# the normal law (ν → ∞).

# %%
import os

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import matplotlib.pyplot as plt
import numpy as np

import sdelens as sl
from sdelens.results.plotting import STYLE

problem = sl.Quadratic(curvature=[0.5, 1.0, 2.0, 5.0], start=1.0)
cauchy = sl.StudentTNoise(scale=1.0, df=1)
sizes = dict(steps=2000, paths=2000, record=sl.Record(every=20))

# %% [markdown]
# ## SGD
#
# Its SDE is driven by a Brownian motion with the noise's covariance. There is none, and so it is refused:

# %%
try:
    sl.simulate(problem, cauchy, sl.SGD(lr=0.01), "sde", steps=10)
except ValueError as error:
    print(error)

# %% [markdown]
# The optimizer itself can be run. The median path looks harmless; the mean over paths goes where the single largest
# draw takes it.

# %%
sgd = sl.simulate(problem, cauchy, sl.SGD(lr=0.01), "optimizer", **sizes)
last = sgd.dataset.isel(model=0, step=-1)
print("median loss", float(last.loss_quantile.sel(quantile=0.5)), " mean loss", float(last.loss_mean))

# %% [markdown]
# ## SignSGD
#
# It only asks for E sign(∇f + Z), which every law has. Its SDE tracks under Cauchy noise as it does under normal noise:

# %%
results = {}
for df in (1, 2, 5):
    noise = sl.StudentTNoise(scale=1.0, df=df)
    results[f"ν = {df}"] = sl.compare(problem, noise, sl.SignSGD(lr=0.01), **sizes)
results["normal"] = sl.compare(problem, sl.GaussianNoise(1.0), sl.SignSGD(lr=0.01), **sizes)
for name, result in results.items():
    row = result.errors().loc["sde"]
    print(f"{name:8} error {100 * row.error:.2f} %, 99 % limits {100 * row.lower:.2f} to {100 * row.upper:.2f} %")

# %% alt="Mean loss under normal and Student t noise: SignSGD settles for every law, its SDE on top; SGD's mean jumps"
colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
with plt.style.context(STYLE):
    figure, axes = plt.subplots(figsize=(5.6, 3.6))
    for (name, result), colour in zip(results.items(), colours, strict=True):
        data = result.dataset.loss_mean
        axes.plot(data.time, data.sel(model="optimizer"), color=colour, alpha=0.6, linewidth=2.4, label=name)
        axes.plot(data.time, data.sel(model="sde"), color="black", linestyle=(0, (5, 2)), linewidth=1)
    mean = sgd.dataset.loss_mean.isel(model=0)
    axes.plot(mean.time, mean, color="0.5", linestyle=(0, (1, 1.2)), label="SGD, ν = 1")
    axes.set(
        yscale="log", xlabel="time $t = k\\eta$", ylabel="mean loss", xlim=(0, 8), title="SignSGD, and its SDE (dashed)"
    )
    axes.legend()

# %% [markdown]
# ## What is left at rest
#
# The loss at rest follows from one number of the law, its density at 0. Predicted, beside the last quarter of the runs:

# %%
for name, result in results.items():
    df = int(name[-1]) if name != "normal" else None
    noise = sl.StudentTNoise(1.0, df) if df else sl.GaussianNoise(1.0)
    rest = sl.theory.stationary(problem, noise, sl.SignSGD(lr=0.01)).loss
    late = result.dataset.loss_mean.sel(model="optimizer")[-25:]
    print(f"{name:8} predicted {rest:.4f}, simulated {float(late.mean()):.4f}")

# %% [markdown]
# ## Are my gradients heavy-tailed?
#
# `gradient_noise` fits ν with limits, through the normal law (κ = 1/ν = 0), and says what a sign is worth: above 1, a
# batch of signs knows the gradient better than a mean does.

# %%
gradients = 0.1 + np.random.default_rng(0).standard_t(3, (400, 50))
print(sl.gradient_noise(gradients, batch_size=1))

# %% [markdown]
# The laws and their formulas are on the page of the [method](../method.md), several workers that vote on signs on that
# of [distributed training](../distributed.md).
