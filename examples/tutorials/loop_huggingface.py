# %% [markdown]
# # With the Trainer of Hugging Face
#
# A callback measures the gradient noise of a Trainer's run and logs it where the Trainer logs: `log_history`,
# TensorBoard, W&B. Nothing else of the script changes.

# %%
import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.utils import logging

import sdelens as sl
from sdelens.callbacks import HuggingFaceNoise

logging.set_verbosity_error()

# %% [markdown]
# ## A small language model
#
# A GPT-2 of one layer reads characters of a text that is part of Python.

# %%
torch.set_num_threads(1)  # fastest for such a small model
torch.manual_seed(0)
text = sl.load_text()
windows, _ = text.windows(32, subset=2000)
rows = [{"input_ids": row, "labels": row} for row in torch.tensor(windows, dtype=torch.long)]
config = GPT2Config(
    vocab_size=len(text.vocabulary),
    n_positions=32,
    n_embd=48,
    n_layer=1,
    n_head=2,
    bos_token_id=None,
    eos_token_id=None,
)
model = GPT2LMHeadModel(config)

# %% [markdown]
# ## The callback
#
# A step needs two or more micro-batches. Here it accumulates two of 16 sequences; one batch of 32 would give the same
# gradient, but no noise could be separated from it.

# %%
arguments = TrainingArguments(
    output_dir="trainer",
    per_device_train_batch_size=16,
    gradient_accumulation_steps=2,
    max_steps=180,
    learning_rate=3e-3,
    warmup_steps=20,
    adam_beta2=0.99,
    logging_steps=60,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=rows)
noise = HuggingFaceNoise(trainer, every=60, windows=30)
trainer.add_callback(noise)
trainer.train()

# %% [markdown]
# ## What was logged

# %%
logs = pd.DataFrame(trainer.state.log_history).set_index("step")
names = ["loss", "noise/noise_scale", "noise/noise_scale_lower", "noise/noise_scale_upper", "noise/snr"]
logs[names].groupby("step").first().round(3)

# %% [markdown]
# The noise scale is in sequences, the unit of the batch size. It grows during a run, and with it the batch size that is
# worth its cost. The callback keeps the verdict and the advice in words:

# %%
for measurement in noise.history:
    print(measurement.step, measurement.text, "\n")

# %% [markdown]
# To continue with a larger batch, rescale the checkpoint of the Trainer; the page on
# [training loops](../training-loops.md) says how.
