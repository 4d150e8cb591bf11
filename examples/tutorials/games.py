# %% [markdown]
# # Two-player games
#
# One player minimises a payoff f(x, y) over x, the other one maximises it over y, as in adversarial training. Gradient
# descent-ascent moves both by the field F = (∇ₓf, −∇_y f), and spirals outwards around the solution of the bilinear
# game f = λxy. The extragradient method uses the field at an extrapolated point, F(z − ρF(z)), and converges. With
# noise in the gradients, it converges to a cloud, and ρ decides how fast, and how large the cloud is (Compagnoni et al.
# 2024, *SDEs for Minimax Optimization*, arXiv 2402.12508).

# %%
import os

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import matplotlib.pyplot as plt
import numpy as np

import sdelens as sl

coupling, lr, scale = 1.0, 0.005, 0.2
game = sl.QuadraticGame(coupling, start=[1.0, 1.0])
noise = sl.GaussianNoise(scale)
models = {"optimizer": "optimizer", "sde": sl.ClosedForm("sde", substeps=4)}
sizes = dict(models=models, steps=1600, paths=2000, record=sl.Record(every=20))

# %% [markdown]
# `SGD` on a game is gradient descent-ascent. `Extragradient` wraps it; both of its gradients have the same noise, as
# both are gradients of one mini-batch in training. The recorded loss is the Hamiltonian ½‖F‖². On this game the SDE
# integrated with steps of η is the algorithm itself, so that it is integrated with a quarter of that step here.

# %%
results = {"descent-ascent": sl.compare(game, noise, sl.SGD(lr), **sizes)}
rates = [0.1, 0.3, 1.0]
for rho in rates:
    results[f"extragradient, ρ = {rho}"] = sl.compare(game, noise, sl.Extragradient(sl.SGD(lr), rho), **sizes)
results["extragradient, ρ = 0.3"]

# %% [markdown]
# ## The curve in closed form
#
# On the bilinear game ∇F is λJ with J² = −I. The SDE of the extragradient method,
#
# $$
# \mathrm{d}Z = -(\lambda J + \rho\lambda^2) Z\,\mathrm{d}t - \sqrt{\eta}\,\sigma\,(I - \rho\lambda J)\,\mathrm{d}W
# $$
#
# turns, contracts at the rate ρλ², and has isotropic noise. The mean Hamiltonian is therefore
#
# $$
# \operatorname{E} H(t) = e^{-2\rho\lambda^2 t} H(0)
# + \frac{\eta\sigma^2}{2}\left(\frac{1}{\rho} + \rho\lambda^2\right)\left(1 - e^{-2\rho\lambda^2 t}\right)
# $$
#
# and for ρ → 0, descent-ascent, H(0) + ησ²λ²t. A large ρ converges fast; the smallest cloud is that of ρ = 1/λ.


# %%
def hamiltonian(time, rho):
    """E H of the SDE at a time."""
    start = coupling**2  # ½λ²‖z₀‖²
    if rho == 0:
        return start + lr * scale**2 * coupling**2 * time
    left = np.exp(-2 * rho * coupling**2 * time)
    return left * start + lr * scale**2 / 2 * (1 / rho + rho * coupling**2) * (1 - left)


for name, result in results.items():
    rho = 0.0 if name == "descent-ascent" else float(name.split("= ")[1])
    last = result.dataset.loss_mean.isel(step=-1)
    shown = ", ".join(f"{model} {float(last.sel(model=model)):.2e}" for model in ("optimizer", "sde"))
    print(f"{name:25} {shown}, closed form {hamiltonian(float(last.time), rho):.2e}")

# %% [markdown]
# The algorithm differs from the SDE by effects of order η: a step of descent-ascent multiplies ‖z‖² by 1 + η²λ², that
# is by exp(ηλ²t) in time t, 4 % by the end. A quarter of it is left in the SDE with 4 substeps.

# %% [markdown]
# ## How large is the cloud?
#
# A sweep over ρ from a start near the solution; every point uses the same compiled program.

# %%
small = sl.QuadraticGame(coupling, start=[0.02, 0.02])
over = {"rho": np.geomspace(0.25, 6.0, 7).tolist()}
sweep = sl.sweep(small, noise, sl.Extragradient(sl.SGD(lr), 1.0), over=over, **sizes)
late = sweep.dataset.loss_mean.isel(step=slice(-30, None)).mean("step")

# %% alt="Mean Hamiltonian against time: extragradient falls, faster for larger ρ; at rest it is least at ρ = 1"
looks = {"optimizer": dict(alpha=0.5, linewidth=3), "sde": dict(color="black", linestyle=(0, (5, 2)), linewidth=1)}
colours, dotted = ["0.45", "#0072B2", "#D55E00", "#009E73"], (0, (1, 1.2))
with sl.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
    for (name, result), colour, rho in zip(results.items(), colours, [0.0, *rates], strict=True):
        data = result.dataset.loss_mean
        for model, look in looks.items():
            label = name.replace(", ", "\n") if model == "optimizer" else None
            left.plot(data.time, data.sel(model=model), label=label, **{"color": colour, **look})
        left.plot(data.time, hamiltonian(data.time, rho), color=colour, linestyle=dotted, linewidth=1.4)
    left.set(yscale="log", xlabel="time $t = k\\eta$", ylabel="mean Hamiltonian ½‖F‖²", ylim=(1e-4, 3))
    left.set_xlim(data.time[0], data.time[-1])
    left.set_title("Extragradient converges\nthick: algorithm; dashed: SDE; dotted: closed form", loc="left")
    rho = np.geomspace(0.2, 7.0, 200)
    right.plot(rho, lr * scale**2 / 2 * (1 / rho + rho * coupling**2), color="0.3", label="closed form at rest")
    for model, marker in (("optimizer", "o"), ("sde", "x")):
        right.plot(sweep.dataset.rho, late.sel(model=model), marker, color="#0072B2", markersize=5, label=model)
    right.set(xscale="log", yscale="log", xlabel="extrapolation $\\rho$", ylabel="mean Hamiltonian at rest")
    right.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    right.set_yticks([2e-4, 3e-4, 5e-4], ["2e-4", "3e-4", "5e-4"])
    right.minorticks_off()
    right.set_title("The cloud is smallest at $\\rho$ = 1", loc="left")
    right.legend(loc="upper center")
    sl.label_lines(left)

# %% [markdown]
# ## Your own game
#
# `Game` takes any differentiable payoff of two pytrees. Here a sine couples the players, and both are drawn to 0.


# %%
def payoff(x, y):
    """A payoff that is not quadratic."""
    return jax.numpy.sum(jax.numpy.sin(x) * y + 0.1 * x**2 - 0.1 * y**2)


own = sl.Game(payoff, start=(np.ones(2), np.ones(2)))
sl.compare(own, noise, sl.Extragradient(sl.SGD(lr), 0.3), steps=800, paths=500)

# %% [markdown]
# The page on [optimizers that query gradients](../queries.md) describes SAM, the extragradient method, and optimizers
# of your own.
