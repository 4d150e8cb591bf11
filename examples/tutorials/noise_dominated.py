# %% [markdown]
# # Is my run noise-dominated?
#
# The square-root rule for another batch size holds if the noise of the gradient is larger than the gradient. Whether
# this is so can be computed from Adam's moments: a checkpoint is sufficient, and no gradient is computed. Here a small
# PyTorch model is trained, checkpoints are saved early and late in training, and both are diagnosed.

# %%
import torch

import sdelens as sl
from sdelens.torch import watch

# %% [markdown]
# ## A run
#
# A two-layer network is trained on the digits with AdamW and batches of 32.

# %%
torch.manual_seed(0)
torch.set_num_threads(1)  # fastest for such a small model
images, digits = sl.load_dataset("digits")
x = torch.tensor(images.reshape(len(images), -1) / 16.0, dtype=torch.float32)
y = torch.tensor(digits.astype("int64"))
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))


def train(steps):
    """Train for the given number of steps on random batches."""
    for _ in range(steps):
        batch = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def save(name):
    """Save a usual checkpoint, with model and optimizer."""
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, name)


train(30)
save("early.pt")
train(1420)
save("late-50.pt")
train(50)
save("late.pt")

# %% [markdown]
# ## Early in training
#
# Files are read with `weights_only=True`, so that no code in them is executed.

# %%
print(sl.diagnose("early.pt", batch_size=32))

# %% [markdown]
# ## Late in training
#
# Adam's second moment averages over about 1/(1 − b2) steps, here a hundred. With a second checkpoint of the same run,
# fifty steps earlier, the older steps can be removed: `earlier=` diagnoses only the steps between the two checkpoints.

# %%
late = sl.diagnose("late.pt", batch_size=32, earlier="late-50.pt")
print(late)

# %% [markdown]
# SNR is ‖∇f‖/√tr Σ for one batch, and √δ times as large at δ times the batch. The *larger* batch must be
# noise-dominated. The verdict says for each ratio whether the square-root rule preserves the trajectory, and gives the
# expected error.

# %%
print("the rule holds up to a batch", late.largest_ratio, "times as large")
{ratio: (late.holds(ratio), late.expected_error(ratio)) for ratio in (2, 4, 16)}

# %% [markdown]
# ## A check with gradients
#
# In the stationary phase, successive steps compensate each other, and the moments then show too little signal. Fresh
# gradients at one point do not have this bias: `watch` collects them from backward passes.

# %%
with watch(model, batch_size=32) as noise:
    for batch in torch.randperm(len(x))[:1792].reshape(56, 32):
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.zero_grad()
print(noise.result())

# %% [markdown]
# Next: [from batch 256 to 1024](batch_size.md). The page on [diagnosis](../diagnosis.md) says how reliable the
# estimates are, and the page on [gradient noise](../gradient-noise.md) says what is estimated from gradients.
