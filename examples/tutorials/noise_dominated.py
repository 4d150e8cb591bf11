# %% [markdown]
# # Is my run noise-dominated?
#
# The square-root rule for another batch size holds if the noise of the gradient is larger than the gradient. This can
# be measured during a few ordinary steps of training. The checkpoint alone says less: the moments of the optimizer
# tell only how large the signal-to-noise ratio is *at least*. Here a small PyTorch model is trained, and diagnosed
# early and late in training.

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


def measured(steps=60, micro_batches=4):
    """The noise during some ordinary steps, each with a batch of four times 8 examples."""
    with watch(model, batch_size=8, scale=1 / micro_batches, keep="sums") as noise:
        for _ in range(steps):
            for batch in torch.randint(len(x), (micro_batches, 8)):
                (torch.nn.functional.cross_entropy(model(x[batch]), y[batch]) / micro_batches).backward()
            optimizer.step()
            optimizer.zero_grad()
    return noise.result()


train(30)

# %% [markdown]
# ## Early in training
#
# `watch` reads the gradient of each micro-batch before it is added to `p.grad`; the loop is otherwise unchanged.

# %%
early = sl.diagnose(optimizer, noise=measured(), batch_size=32)
early

# %% [markdown]
# SNR is ‖∇f‖/√tr Σ for one batch of 32, and √δ times as large at δ times the batch. The *larger* batch must be
# noise-dominated. For each ratio there is the expected error of the loss curve under the square-root rule, its range,
# and whether the rule holds within 5 %.
#
# ## Late in training

# %%
train(1400)
save("late-50.pt")
train(50)
save("late.pt")
late = sl.diagnose(optimizer, noise=measured(), batch_size=32)
late

# %%
print("The rule holds up to, and fails from, this many times the batch:", late.largest_ratio_limits)
{ratio: (late.holds(ratio), late.expected_error(ratio), late.error_range(ratio)) for ratio in (2, 4, 16)}

# %% [markdown]
# ## What the checkpoint says
#
# From the moments alone there is only a lower limit: a gradient that turns over within the memory of the moments looks
# like noise. Here they show no signal, and the verdict is that they cannot tell. `earlier=`, a second checkpoint of the
# same run fifty steps before, leaves out older steps, which matters if b2 is close to 1.

# %%
print(sl.diagnose("late.pt", batch_size=32, earlier="late-50.pt").verdict())

# %% [markdown]
# Next: [from batch 256 to 1024](batch_size.md). The page on [diagnosis](../diagnosis.md) says how reliable the
# estimates are, and the page on [gradient noise](../gradient-noise.md) says what is estimated from gradients.
