# %% [markdown]
# # In a PyTorch loop: measure, then change the batch size
#
# A monitor measures the gradient noise of a running training and says what it means. Then the same training function is
# continued from one checkpoint at larger batches, to see whether the rescaled hyperparameters keep the loss.

# %%
import copy

import torch
from torch.nn.functional import cross_entropy

import sdelens as sl
from sdelens.callbacks import NoiseMonitor
from sdelens.torch import rescale, svag

# %% [markdown]
# ## A run
#
# A two-layer network is trained on the digits with AdamW. Every step accumulates two halves of a batch of 32: the
# gradient is that of the whole batch, and its noise can be separated from its mean.

# %%
torch.manual_seed(0)
torch.set_num_threads(1)  # fastest for such a small model
images, digits = sl.load_dataset("digits")
x = torch.tensor(images.reshape(len(images), -1) / 16.0, dtype=torch.float32)
y = torch.tensor(digits.astype("int64"))
test, train = torch.arange(len(x)) % 5 == 0, torch.arange(len(x)) % 5 > 0
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
adamw = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.01}
optimizer = torch.optim.AdamW(model.parameters(), **adamw)


def batch_loss(model, size, generator=None):
    """The loss of a random batch of the training data."""
    rows = torch.randint(int(train.sum()), (size,), generator=generator)
    return cross_entropy(model(x[train][rows]), y[train][rows])


def report(numbers, step):
    """What would go to TensorBoard or W&B."""
    print(step, {name: float(f"{value:.3g}") for name, value in numbers.items()})


with NoiseMonitor(model, optimizer, batch_size=16, scale=1 / 2, every=150, windows=40, log=report) as monitor:
    for _ in range(300):
        for _ in range(2):
            (batch_loss(model, 16) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step()

# %% [markdown]
# The verdict and the advice in words:

# %%
print(monitor.last.text)

# %% [markdown]
# ## Does the rule hold? Ask the run
#
# The prediction is tested by the training itself. `branch` continues from a checkpoint with the present batch and with
# larger ones, each with the hyperparameters of a rule and with several seeds, and compares the losses at equal numbers
# of samples. The function that trains is the user's; here it reports a loss on held-out data.

# %%
checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def train_on(checkpoint, run):
    """Continue the run as `run` says, and report pairs of samples and held-out loss."""
    ours = copy.deepcopy(model)
    ours.load_state_dict(checkpoint["model"])
    own = torch.optim.AdamW(ours.parameters(), **adamw)
    own.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))
    rescale(own, run.ratio, **run.options)
    generator, losses = torch.Generator().manual_seed(run.seed), []
    for step in range(run.steps + 1):
        if step * run.batch_size % 512 == 0:
            with torch.no_grad():
                losses.append((step * run.batch_size, cross_entropy(ours(x[test]), y[test]).item()))
        own.zero_grad()
        batch_loss(ours, run.batch_size, generator).backward()
        own.step()
    return losses


found = sl.scaling.branch(
    train_on,
    checkpoint,
    (2, 4, 8),
    optimizer={"optimizer": "adamw", **adamw},
    batch_size=32,
    samples=32 * 192,
    rules={"full": {}, "nothing": {"rule": "none"}},
    predicted=monitor.last.diagnosis,
)
found

# %% alt="Held-out loss at equal samples for batches of 32 to 256, with and without the rule, and the differences"
found.plot()

# %% [markdown]
# ## Is there an SDE at all?
#
# A scaling rule keeps an SDE of the run, so there must be one that describes it. If the steps are shortened and the
# noise is amplified so that drift and noise per time stay the same, the loss must not change. The model and the
# optimizer are copied.

# %%
found = svag(
    model,
    optimizer,
    lambda model, generator: batch_loss(model, 32, generator),
    steps=180,
    factors=[2],
    evaluate=lambda model: cross_entropy(model(x[test]), y[test]),
)
found

# %% [markdown]
# Other loops: [Hugging Face](loop_huggingface.md), [Lightning](loop_lightning.md), [optax](loop_optax.md). The page on
# [training loops](../training-loops.md) has the details.
