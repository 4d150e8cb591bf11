"""Diagnosis, rules and advice tried on a real run: a small GPT on the texts of Python's own documentation.

A character model of 0.2 million parameters is trained with AdamW, warm-up, cosine and clipping, at batches of 8. At six
points of the run the SNR is measured from 300 fresh batches, diagnosed from the optimizer's moments and from 40
micro-batches, and the run is continued at four times the batch under several rules, by `sl.scaling.branch`.

    python examples/gpt.py --out gpt              # an hour on one core; continues where it was interrupted
    python examples/gpt.py --out gpt --quick      # a minute, to see that it runs
"""

import argparse
import copy
import json
import math
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from torch import nn

import sdelens as sl
import sdelens.torch

TEXT = "\n".join(topics.topics[name] for name in sorted(topics.topics))
LETTERS = {letter: i for i, letter in enumerate(sorted(set(TEXT)))}
DATA = torch.tensor([LETTERS[letter] for letter in TEXT])
HELD_OUT = len(DATA) // 10
LENGTH, BATCH, CLIP = 64, 8, 1.0
STEPS, WARMUP = 2000, 100
REST = 1.62  # loss that the run approaches
SETTINGS = {"optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
POINTS = (60, 150, 300, 600, 1000, 1500)


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a normalisation and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.before, self.between = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        batch, length, width = x.shape
        parts = self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.out(mixed.reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    """A character model."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(LETTERS), bias=False))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """The logits of the next letters."""
        return self.head(self.blocks(self.letters(text) + self.places.weight))


def batch(size: int, generator: torch.Generator, held_out: bool = False) -> torch.Tensor:
    """Random pieces of the text."""
    data = DATA[-HELD_OUT:] if held_out else DATA[:-HELD_OUT]
    return data[torch.randint(len(data) - LENGTH, (size, 1), generator=generator) + torch.arange(LENGTH + 1)]


def loss_of(model: GPT, text: torch.Tensor) -> torch.Tensor:
    """The mean loss of the next letter."""
    return nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def schedule(step: float) -> float:
    """Factor of the learning rate after a number of steps of 8, which need not be whole."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def adamw(model: GPT) -> torch.optim.AdamW:
    """The optimizer of the run."""
    return torch.optim.AdamW(model.named_parameters(), **{k: v for k, v in SETTINGS.items() if k != "optimizer"})


def start(checkpoint: dict) -> tuple[GPT, torch.optim.AdamW]:
    """A model and its optimizer as they were at a point of the run."""
    model = GPT()
    model.load_state_dict(checkpoint["model"])
    optimizer = adamw(model)
    optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))
    return model, optimizer


def step(model: GPT, optimizer: torch.optim.AdamW, text: torch.Tensor, lr: float, clip: float) -> None:
    """One step of training."""
    optimizer.param_groups[0]["lr"] = lr
    optimizer.zero_grad()
    loss_of(model, text).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def first_run(points: tuple[int, ...]) -> dict[int, dict]:
    """The run at the small batch, kept at the points."""
    torch.manual_seed(0)
    generator, kept = torch.Generator().manual_seed(1), {}
    model = GPT()
    optimizer = adamw(model)
    for k in range(max(points) + 1):
        if k in points:
            kept[k] = copy.deepcopy({"step": k, "model": model.state_dict(), "optimizer": optimizer.state_dict()})
        step(model, optimizer, batch(BATCH, generator), SETTINGS["lr"] * schedule(k), CLIP)
    return kept


def continued(checkpoint: dict, run: sl.scaling.BranchRun) -> list[tuple[int, float]]:
    """What `branch` calls: the run from a point on, at the batch size and under the rule that it asks for."""
    model, optimizer = start(checkpoint)
    if run.ratio != 1:
        sdelens.torch.rescale(optimizer, run.ratio, **run.options)
    lr, clip = run.optimizer["lr"], run.rescaled.clip_norm
    generator = torch.Generator().manual_seed(1000 * run.seed + checkpoint["step"])
    text = batch(256, torch.Generator().manual_seed(7), held_out=True)
    records = []
    for k in range(run.steps):
        at = checkpoint["step"] + k * run.ratio + (run.ratio - 1) / 2
        step(model, optimizer, batch(run.batch_size, generator), lr * schedule(at), clip)
        if (k + 1) % max(run.steps // 6, 1) == 0 or k >= run.steps - 2:
            with torch.no_grad():
                records.append(((k + 1) * run.batch_size, float(loss_of(model, text))))
    return records


def true_snr(checkpoint: dict, batches: int) -> float:
    """The SNR at a point from fresh batches."""
    model, _ = start(checkpoint)
    generator = torch.Generator().manual_seed(100 + checkpoint["step"])
    total, squares = 0.0, 0.0
    for _ in range(batches):
        model.zero_grad()
        loss_of(model, batch(BATCH, generator)).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
        total, squares = total + gradient, squares + float(gradient @ gradient)
    mean = total / batches
    trace = (squares - batches * float(mean @ mean)) / (batches - 1)
    return math.sqrt(max(float(mean @ mean) - trace / batches, 0.0) / trace)


def measured(checkpoint: dict, micro_batches: int) -> tuple[sl.Diagnosis, sl.Diagnosis]:
    """Diagnoses of a point from moments, and from the gradients of micro-batches of 8."""
    model, optimizer = start(checkpoint)
    generator = torch.Generator().manual_seed(200 + checkpoint["step"])
    with sdelens.torch.watch(model, batch_size=BATCH, tails=False) as noise:
        for _ in range(micro_batches):
            loss_of(model, batch(BATCH, generator)).backward()
            model.zero_grad()
    moments = sl.diagnose(optimizer, batch_size=BATCH)
    return moments, sl.diagnose(optimizer, noise=noise.result(), batch_size=BATCH)


def rules(ratio: float, found: sl.Diagnosis) -> dict[str, dict]:
    """The rules that are compared, by label."""
    best = sl.scaling.recommended(ratio, found.snr, found.limits, "adamw", SETTINGS["betas"][0])
    chosen = {"rule": best.rule, "momentum": best.momentum} | ({} if best.snr is None else {"snr": best.snr})
    full = {"rule": "sqrt", "momentum": "samples" if ratio < found.legal_ratio else "half-life"}
    compared = {
        "recommended": chosen,
        "full": full,
        "√δ on lr alone": {"rule": "sqrt-lr"},
        "δ on lr alone": {"rule": "goyal2017"},
        "full, b1 held": {"rule": "sqrt", "momentum": "second-moment"},
        "measured SNR, b1 held": {"rule": "signal-to-noise", "momentum": "second-moment", "snr": found.snr},
        "nothing": {"rule": "none"},
    }
    return {label: {**options, "clip_norm": CLIP} for label, options in compared.items()}


def predicted_and_happened(checkpoint: dict, found: sl.Diagnosis, branches: sl.scaling.Branches) -> str:
    """The error of the full rule over the progress of the run, and the relative L2 distance of the mean curves."""
    curves = {}
    for label in ("base", "full"):
        runs = [curve for curve in branches.curves if curve.label == label]
        curves[label] = np.mean([curve.losses for curve in runs], axis=0), runs[0].samples
    samples = np.concatenate([[0.0], curves["base"][1]])
    with torch.no_grad():
        text = batch(256, torch.Generator().manual_seed(7), held_out=True)
        first = float(loss_of(start(checkpoint)[0], text))
    base = np.concatenate([[first], curves["base"][0]]) - REST
    full = np.interp(samples, np.concatenate([[0.0], curves["full"][1]]), np.concatenate([[first], curves["full"][0]]))
    happened = math.sqrt(np.trapezoid((full - REST - base) ** 2, samples) / np.trapezoid(base**2, samples))
    progress, ratio = 1 - base[-1] / base[0], max(curve.ratio for curve in branches.curves)
    expected, (low, high) = found.expected_error(ratio, progress), found.error_range(ratio, progress)
    return (
        f"Full rule, over {100 * progress:.0f} % of the way: predicted {100 * expected:.2g} % ({100 * low:.2g} to "
        f"{100 * high:.2g} %), happened {100 * happened:.2g} %"
    )


def main() -> None:
    """Run, diagnose, continue, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpt"))
    parser.add_argument("--points", type=int, nargs="+", default=POINTS)
    parser.add_argument("--ratio", type=float, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    points, length, fresh = (asked.points, 600, 300) if not asked.quick else ([60], 64, 20)
    seeds = asked.seeds if not asked.quick else 2
    asked.out.mkdir(parents=True, exist_ok=True)
    for point, checkpoint in first_run(tuple(points)).items():
        true = true_snr(checkpoint, fresh)
        moments, found = measured(checkpoint, 40)
        print(f"\nStep {point}: SNR {true:.3f} from {fresh} fresh batches")
        print("  moments:   ", moments.limits, moments.verdict())
        print("  gradients: ", found.limits, found.verdict())
        branches = sl.scaling.branch(
            continued,
            checkpoint,
            [asked.ratio],
            optimizer=SETTINGS,
            batch_size=BATCH,
            samples=BATCH * min(length, STEPS - point),
            seeds=seeds,
            rules=rules(asked.ratio, found),
            predicted=found,
            folder=asked.out / f"{point}-x{asked.ratio:g}",
        )
        print(branches)
        print(predicted_and_happened(checkpoint, found, branches), flush=True)
        summary = {"true": true, "moments": moments.limits, "gradients": [found.snr, *found.limits]}
        (asked.out / f"{point}-x{asked.ratio:g}.json").write_text(
            json.dumps({**summary, **branches.to_dict()}, indent=1)
        )


if __name__ == "__main__":
    main()
