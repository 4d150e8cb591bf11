# %% [markdown]
# # With Lightning
#
# A callback measures the gradient noise of a Lightning run and sends it to the Trainer's loggers. Here they write a CSV
# file; TensorBoard and W&B get the same numbers.

# %%
import logging
import warnings

import lightning.pytorch as lightning
import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.utils.data import DataLoader, TensorDataset

import sdelens as sl
from sdelens.callbacks import LightningNoise

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*(num_workers|LeafSpec).*")

# %% [markdown]
# ## A module
#
# It is an ordinary module with automatic optimization: a network for the digits.

# %%
torch.set_num_threads(1)  # fastest for such a small model
lightning.seed_everything(0, verbose=False)
images, digits = sl.load_dataset("digits")
x = torch.tensor(images.reshape(len(images), -1) / 16.0, dtype=torch.float32)
y = torch.tensor(digits.astype("int64"))


class Digits(lightning.LightningModule):
    """A network with one hidden layer."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch, _):  # noqa: D102
        images, digits = batch
        loss = torch.nn.functional.cross_entropy(self.layers(images), digits)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):  # noqa: D102
        return torch.optim.AdamW(self.parameters(), lr=1e-3, betas=(0.9, 0.99))


# %% [markdown]
# ## The callback
#
# A step needs two or more micro-batches: `accumulate_grad_batches=2` with batches of 16 gives the gradient of a batch
# of 32, and its noise.

# %%
noise = LightningNoise(every=100, windows=40)
logger = lightning.loggers.CSVLogger("logs")
trainer = lightning.Trainer(
    max_steps=300,
    max_epochs=-1,
    accumulate_grad_batches=2,
    callbacks=[noise],
    logger=logger,
    log_every_n_steps=20,
    accelerator="cpu",
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Digits(), DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))
logger.save()

# %% [markdown]
# ## What was logged

# %%
logs = pd.read_csv(f"{logger.log_dir}/metrics.csv")
measured = logs[logs["noise/noise_scale_lower"].notna()]
names = ["noise_scale", "noise_scale_lower", "noise_scale_upper", "snr", "largest_ratio"]
measured.set_index("step")[[f"noise/{name}" for name in names]].round(2)


# %% alt="Loss of the run, falling; below, the noise scale with its limits, rising"
def drawn():
    """The loss, and the noise scale with its limits."""
    with sl.style():
        figure, (top, bottom) = plt.subplots(2, sharex=True)
        logs.dropna(subset="loss").plot("step", "loss", ax=top, legend=False, ylabel="loss")
        low, high = (measured[f"noise/noise_scale_{end}"] for end in ("lower", "upper"))
        bottom.fill_between(measured.step, low, high, alpha=0.2)
        bottom.plot(measured.step, measured["noise/noise_scale"], "o-")
        bottom.set(xlabel="step", ylabel="noise scale (samples)", yscale="log")
    plt.close(figure)
    return figure


drawn()

# %% [markdown]
# The verdict and the advice of the last measurement, in words, and the whole table of the advice:

# %%
print(noise.history[-1].text)

# %%
noise.history[-1].advice

# %% [markdown]
# The page on [training loops](../training-loops.md) says what else can be done with a run.
