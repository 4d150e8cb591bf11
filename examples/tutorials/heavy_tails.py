# %% [markdown]
# # Heavy tails
#
# The noise of gradients can have such heavy tails that it has no variance, or not even a mean. SGD then has no SDE and
# no finite mean loss; SignSGD has both. Student's t with ν degrees of freedom covers the range from Cauchy noise (ν =
# 1) to the normal law (ν → ∞).

# %%
import os

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import matplotlib.pyplot as plt
import numpy as np

import sdelens as sl

problem = sl.Quadratic(curvature=[0.5, 1.0, 2.0, 5.0], start=1.0)
cauchy = sl.StudentTNoise(scale=1.0, df=1)
sizes = dict(steps=2000, paths=2000, record=sl.Record(every=20))

# %% [markdown]
# ## SGD
#
# The SDE of SGD is driven by a Brownian motion with the covariance of the noise. Cauchy noise has no covariance, so
# that the SDE is refused:

# %%
try:
    sl.simulate(problem, cauchy, sl.SGD(lr=0.01), "sde", steps=10)
except ValueError as error:
    print(error)

# %% [markdown]
# The optimizer itself can be run. The median of the loss over paths stays below 10, but the mean is determined by the
# single largest draw.

# %%
sgd = sl.simulate(problem, cauchy, sl.SGD(lr=0.01), "optimizer", **sizes)
last = sgd.dataset.isel(model=0, step=-1)
print("median loss", float(last.loss_quantile.sel(quantile=0.5)), " mean loss", float(last.loss_mean))

# %% [markdown]
# ## SignSGD
#
# The SDE of SignSGD needs only the law of sign(∇f + Z), whose moments always exist. It tracks the optimizer under
# Cauchy noise as well as under normal noise:

# %%
results = {}
for df in (1, 2, 5):
    noise = sl.StudentTNoise(scale=1.0, df=df)
    results[f"ν = {df}"] = sl.compare(problem, noise, sl.SignSGD(lr=0.01), **sizes)
results["normal"] = sl.compare(problem, sl.GaussianNoise(1.0), sl.SignSGD(lr=0.01), **sizes)
for name, result in results.items():
    row = result.errors().loc["sde"]
    print(f"{name:8} error at most {100 * row.error_upper:.2f} % (99 % limit)")

# %% alt="SignSGD and its SDE agree under every noise; the mean of SGD under Cauchy noise jumps, its median does not"
colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
with sl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4))
    for (name, result), colour in zip(results.items(), colours, strict=True):
        data = result.dataset.loss_mean.sel(step=slice(0, 800))
        left.plot(data.time, data.sel(model="optimizer"), label=name, color=colour, alpha=0.5, linewidth=3)
        left.plot(data.time, data.sel(model="sde"), color=colour, linestyle=(0, (5, 2)), linewidth=1)
    left.set(yscale="log", xlabel="time $t = k\\eta$", ylabel="mean loss", xlim=(0, 8))
    left.set_title("SignSGD and its SDE (dashed)\nagree under every noise", loc="left")
    sl.label_lines(left)
    sgd_data = sgd.dataset.isel(model=0)
    median = sgd_data.loss_quantile.sel(quantile=0.5)
    right.plot(sgd_data.time, sgd_data.loss_mean, label="mean", color="#D55E00")
    right.plot(sgd_data.time, median, label="median", color="black")
    right.set(yscale="log", xlabel="time $t = k\\eta$", ylabel="loss", xlim=(0, 20))
    right.set_title("SGD under Cauchy noise (ν = 1):\nthe mean is that of the largest draw", loc="left")
    sl.label_lines(right)

# %% [markdown]
# ## Stationary loss
#
# The stationary loss depends on the law mainly through its density at 0. The predictions are compared with the mean
# loss over the last quarter of the runs:

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
# `gradient_noise` estimates κ = 1/ν with limits, where κ = 0 is the normal law, and the efficiency of a sign. If it is
# above 1, signs give a better estimate of the gradient than a mean does.

# %%
gradients = 0.1 + np.random.default_rng(0).standard_t(3, (400, 50))
sl.gradient_noise(gradients, batch_size=1)

# %% [markdown]
# The page on the [method](../method.md) gives the laws and their formulas, and the page on
# [distributed training](../distributed.md) describes several workers that vote on signs.
