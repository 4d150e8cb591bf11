# %% [markdown]
# # Forecast a longer run
#
# Six short training runs are fitted together; then the loss of runs that were not fitted is predicted, with a band, and
# compared with what happened. Last, the fitted problem is asked for a better schedule.
#
# The logs are of a small network (two hidden layers of 96 units) that predicts the next character of a text from the
# twelve before it, trained with AdamW. `examples/forecast_logs.py` makes them in some minutes; here they are thinned to
# the steps with a held-out loss.

# %%
from pathlib import Path

import sdelens as sl

places = [Path.cwd(), *Path.cwd().parents]
logs = next(found for place in places if (found := place / "examples" / "tutorials" / "forecast_logs").is_dir())
files = sorted(logs.glob("fit-*.csv"))
print(*files[0].read_text().splitlines()[:4], sep="\n")

# %% [markdown]
# ## Runs
#
# A run is a loss curve with the optimizer that made it, and its batch size. The learning rates are in the logs; without
# them, the optimizer needs its schedule. The runs have three schedules (constant, cosine, and constant with a decay
# over the last fifth), each with batches of 32 and of 128: they end at different learning rates, so that the noise can
# be told from the loss at the minimum.


# %%
def a_run(path, lr):
    """A logged run; its batch size is in the name of its file."""
    _, _, schedule, batch, *_ = path.stem.split("-")
    batch_size = int(batch.removeprefix("b"))
    optimizer = sl.AdamW(lr=lr, b1=0.9, b2=0.99)
    return sl.forecast.Run(path, optimizer, loss="eval_loss", batch_size=batch_size, name=f"{schedule} {batch_size}")


fitted = [a_run(path, lr=2e-3) for path in files]
forecaster = sl.forecast.fit(fitted)
forecaster

# %% [markdown]
# The first table gives the numbers of the fitted problem with 90 % limits. *Identified* says whether these runs tell
# them: where it says "no", the value is mostly what was assumed before. The second table compares the fit with each
# run. The sentences below name what no fit could tell from these settings, and the run that would tell it.

# %% alt="Six logged loss curves with the fitted ones on top of them; below, their differences, mostly within 1 %"
forecaster.plot()

# %% [markdown]
# ## A run of two and a half times the length
#
# It has batches of 64, which were not fitted, and a cosine over 6250 steps. The prediction uses only its settings.

# %%
longer = sl.AdamW(lr=2e-3, b1=0.9, b2=0.99, schedule=sl.Warmup(100, sl.Cosine(6150, end=0.1)))
forecaster.final(longer, steps=6250, batch_size=64)

# %% [markdown]
# What happened is in another log. The comparison begins after the warm-up, as the fit does: the first steps, in which
# the network learns how frequent the characters are, are no part of the model.

# %% alt="The predicted loss curve with its 90 % band, and the logged curve mostly within it; their difference below"
happened = a_run(logs / "test-adamw-cosine-b64-lr0.002-n6250-seed0.csv", lr=2e-3)
predicted = forecaster.predict(longer, steps=6250, batch_size=64, at=happened.steps[happened.steps >= 100])
both = predicted.with_curve("logged", happened.losses, happened.steps)
print(f"predicted {predicted.dataset.loss_mean.values[0, -1]:.4f}, happened {happened.losses[-1]:.4f}")
both.plot()

# %%
both

# %% [markdown]
# ## Another learning rate
#
# All fitted runs have the same peak learning rate, as the report says; the effect of another one follows from the
# theory alone. Here it is three halves of the fitted one, with a linear decay to 0.

# %%
linear = sl.AdamW(lr=3e-3, b1=0.9, b2=0.99, schedule=sl.Warmup(100, sl.Interpolated([0, 2400], [1, 0])))
found = forecaster.final(linear, steps=2500, batch_size=64)
happened = a_run(logs / "test-adamw-linear-b64-lr0.003-n2500-seed0.csv", lr=3e-3)
print(f"predicted {found.value:.4f} ({found.lower:.4f} to {found.upper:.4f}), happened {happened.losses[-1]:.4f}")

# %% [markdown]
# ## A better schedule
#
# Among all schedules of this length with the same peak that never increase, this one has the smallest predicted loss:

# %%
best = forecaster.best_schedule(6250, longer, batch_size=64)
best

# %% alt="The chosen schedule stays at its peak for three quarters of the run, then falls; below, the predicted losses"
best.plot()

# %% [markdown]
# The run was then made with four seeds for each schedule. The cosine ended at 1.577, the chosen schedule at 1.543, and
# a linear decay to 0 over the last 20 % at 1.531, each with a standard error of 0.002 to 0.004. So a late decay is
# better than a cosine, as predicted. Which late decay is best was predicted wrongly: the noise of these runs at the end
# is larger than the fit says. Take the kind of schedule from a forecast, and train both of two schedules that differ by
# less than one percent.
#
# The page on [forecasts](../forecast.md) has more of these comparisons, the equations, and what a forecast cannot do.
