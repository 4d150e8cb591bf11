# %% [markdown]
# # Is my run noise-dominated?
#
# The square-root rule for another batch size holds where the noise of the gradient outweighs the gradient. Adam's own
# moments say whether that is so: a checkpoint is enough, and no gradient is computed. Here a small PyTorch model is
# trained, saved early and late, and both checkpoints are diagnosed.

# %%
import torch

import sdelens as sl
from sdelens.torch import watch

# %% [markdown]
# ## A run
#
# A two-layer network on digits, batches of 32, AdamW.

# %%
torch.manual_seed(0)
torch.set_num_threads(1)  # what so small a model is fastest with
images, digits = sl.load_dataset("digits")
x = torch.tensor(images.reshape(len(images), -1) / 16.0, dtype=torch.float32)
y = torch.tensor(digits.astype("int64"))
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))


def train(steps):
    """That many steps on batches drawn at random."""
    for _ in range(steps):
        batch = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def save(name):
    """A checkpoint as one writes it: model and optimizer."""
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
# Files are read with `weights_only=True`: nothing in them is executed.

# %%
print(sl.diagnose("early.pt", batch_size=32))

# %% [markdown]
# ## Late
#
# Adam's second moment remembers 1/(1 − b2) steps, here a hundred. A second checkpoint of the same run, fifty steps
# earlier, removes what is older: `earlier=` diagnoses the steps between them alone.

# %%
late = sl.diagnose("late.pt", batch_size=32, earlier="late-50.pt")
print(late)

# %% [markdown]
# What to read off: SNR is ‖∇f‖/√tr Σ for one batch, and √δ times that at δ times the batch. It is the *larger* batch
# that must be noise-dominated. The verdict says for each ratio whether the square-root rule keeps the course, with the
# error it lets expect.

# %%
print("the rule holds up to a batch", late.largest_ratio, "times as large")
{ratio: (late.holds(ratio), late.expected_error(ratio)) for ratio in (2, 4, 16)}

# %% [markdown]
# ## A second opinion, from gradients
#
# At rest a run undoes its own steps, and moments then show too little signal. Fresh gradients at one point do not
# have that fault: `watch` gathers them from backward passes that you make anyway.

# %%
with watch(model, batch_size=32) as noise:
    for batch in torch.randperm(len(x))[:1792].reshape(56, 32):
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.zero_grad()
print(noise.result())

# %% [markdown]
# Next: [from batch 256 to 1024](batch_size.md). How far to trust a reading is on the page of
# [diagnosis](../diagnosis.md), and what is estimated from gradients on that of [gradient noise](../gradient-noise.md).
