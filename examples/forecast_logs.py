"""Loss curves of a small character model under SGD, SignSGD and AdamW, to be fitted and predicted by a forecast.

A network with two hidden layers predicts the next character of the texts of Python's own documentation from the
characters before it. Every run begins at the same parameters and sees no character twice as one to predict, so that its
training loss is not lowered by what it remembers. For each optimizer there are six runs to fit (three schedules, two
batch sizes), and five to predict: longer, at other batch sizes, with other learning rates, and other schedules.

    python examples/forecast_logs.py --out logs                    # continues where it was interrupted
    python examples/forecast_logs.py --out logs --only "*adamw*"   # some of the runs
    python examples/forecast_logs.py --out logs --list             # what there is to run

Each run becomes one CSV file with the columns step, lr, loss and eval_loss. `loss` is that of the training batch before
the step is taken, and `eval_loss`, empty at most steps, that of the same parameters on a fixed part of the text that no
run trains on. The last row, after the last step, has only `eval_loss`.
"""

import argparse
import csv
import fnmatch
import itertools
import math
import time
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sdelens as sl
from sdelens.core.files import atomic_path

STEPS, WARMUP = 2500, 100
BLOCK = 1000  # characters; every tenth block of the text is held out
OPTIMIZERS = {
    "adamw": (partial(optax.adamw, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0), 2e-3),
    "sgd": (optax.sgd, 0.3),
    "signsgd": (optax.sign_sgd, 6e-4),
}
"""What is run, and its learning rate."""


class Model(NamedTuple):
    """Sizes of the network: characters that it sees, numbers that encode each, and units of a hidden layer."""

    context: int = 12
    letter: int = 16
    width: int = 96


USUAL = Model()


class Setting(NamedTuple):
    """A run. `aim` says what it is for: to be fitted, to be predicted, or to show the scatter between seeds."""

    aim: str
    optimizer: str
    schedule: str
    batch_size: int
    lr: float
    steps: int
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its file, without the suffix."""
        what = f"{self.aim}-{self.optimizer}-{self.schedule}-b{self.batch_size}-lr{self.lr:g}-n{self.steps}"
        return f"{what}-seed{self.seed}"


def settings() -> list[Setting]:
    """All runs, optimizer by optimizer."""
    runs = []
    for optimizer, (_, lr) in OPTIMIZERS.items():
        fitted = [(schedule, size) for schedule in ("constant", "cosine", "wsd") for size in (32, 128)]
        runs += [Setting("fit", optimizer, schedule, size, lr, STEPS) for schedule, size in fitted]
        runs += [
            Setting("test", optimizer, "cosine", 64, lr, STEPS * 5 // 2),
            Setting("test", optimizer, "cosine", 32, lr / 2, STEPS),
            Setting("test", optimizer, "stepdown", 128, lr, STEPS),
            Setting("test", optimizer, "cosine", 256, lr, STEPS * 16 // 25),
            Setting("test", optimizer, "linear", 64, lr * 3 / 2, STEPS),
        ]
        again = [("cosine", 32), ("constant", 128)]
        runs += [Setting("seed", optimizer, schedule, size, lr, STEPS, seed=1) for schedule, size in again]
    return runs


def learning_rates(setting: Setting, warmup: int = WARMUP) -> np.ndarray:
    """The learning rate of every step: a linear warm-up, then the schedule over what remains."""
    step = np.arange(setting.steps)
    share = np.clip((step - warmup) / (setting.steps - warmup), 0, 1)
    match setting.schedule:
        case "constant":
            shape = np.ones_like(share)
        case "cosine":
            shape = 0.1 + 0.45 * (1 + np.cos(math.pi * share))
        case "wsd":
            shape = np.minimum(1, (setting.steps - step) / (0.2 * setting.steps))
        case "stepdown":
            shape = np.where(step < setting.steps // 2, 1.0, 0.3)
        case "linear":
            shape = 1 - share
        case other:
            raise ValueError(f"schedule: got {other!r}; give constant, cosine, wsd, stepdown or linear.")
    return setting.lr * np.minimum(1, (step + 1) / warmup) * shape


def evaluated_steps(steps: int, count: int = 150) -> np.ndarray:
    """About `count` steps from 0 to `steps`: the first third equally spaced in logarithm, the others equally spaced."""
    early, late = np.geomspace(1, max(steps // 10, 1), count // 3), np.linspace(steps / 10, steps, count - count // 3)
    return np.unique(np.rint(np.concatenate([[0], early, late])).astype(int))


def start(model: Model, letters: int) -> dict[str, np.ndarray]:
    """The parameters with which every run begins; all characters are nearly equally likely."""
    generator = np.random.default_rng(0)
    sizes = [model.context * model.letter, model.width, model.width, letters]
    parameters = {"letters": generator.standard_normal((letters, model.letter))}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        gain = 0.1 if fan_out == letters else math.sqrt(2)
        parameters[f"weight{i}"] = gain * generator.standard_normal((fan_in, fan_out)) / math.sqrt(fan_in)
        parameters[f"bias{i}"] = np.zeros(fan_out)
    return {name: value.astype(np.float32) for name, value in parameters.items()}


def loss_of(parameters: dict, windows: jax.Array) -> jax.Array:
    """The mean loss of the last character of each window, given the others."""
    x = parameters["letters"][windows[:, :-1]].reshape(len(windows), -1)
    for i in range(2):
        x = jax.nn.relu(x @ parameters[f"weight{i}"] + parameters[f"bias{i}"])
    logits = x @ parameters["weight2"] + parameters["bias2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()


@partial(jax.jit, static_argnames=("optimizer", "context"))
def curves(optimizer, context, parameters, codes, batches, held_out, lrs, stops):
    """Losses of the training batches, and held-out losses at the steps `stops`.

    `batches` and `held_out` are places of characters in the text, which are predicted from the `context` before them.
    """
    transformation = OPTIMIZERS[optimizer][0](lambda count: lrs[count])

    def loss(parameters, places):
        return loss_of(parameters, codes[places[:, None] + jnp.arange(-context, 1)])

    def step(k, carry):
        parameters, state, losses = carry
        value, gradient = jax.value_and_grad(loss)(parameters, batches[k])
        updates, state = transformation.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, losses.at[k].set(value)

    def stretch(carry, ends):
        carry = jax.lax.fori_loop(*ends, step, carry)
        return carry, loss(carry[0], held_out)

    carry = parameters, transformation.init(parameters), jnp.zeros(len(batches))
    (_, _, losses), evaluated = jax.lax.scan(stretch, carry, (jnp.concatenate([stops[:1], stops[:-1]]), stops))
    return losses, evaluated


def train(setting: Setting, *, model: Model = USUAL, warmup: int = WARMUP, held_out: int = 8192) -> list[tuple]:
    """Rows of a run: step, learning rate, training loss, and held-out loss or an empty string.

    Raises:
        ValueError: if the run needs more characters than the training part of the text has, or its schedule is unknown.
    """
    text = sl.load_text()
    places = np.arange(model.context, len(text.codes))
    out = places // BLOCK % 10 == 9
    left, needed = np.count_nonzero(~out), setting.steps * setting.batch_size
    if needed > left:
        raise ValueError(
            f"steps: got {setting.steps} of {setting.batch_size} examples, but the text has only {left} to train on; "
            f"give {left // setting.batch_size} or fewer steps."
        )
    order = np.random.default_rng(zlib.crc32(setting.name.encode())).permutation(places[~out])[:needed]
    batches = order.reshape(setting.steps, setting.batch_size).astype(np.int32)
    kept = np.random.default_rng(1).choice(places[out], held_out, replace=False).astype(np.int32)
    lrs, stops = learning_rates(setting, warmup), evaluated_steps(setting.steps)
    parameters = start(model, len(text.vocabulary))
    losses, evaluated = curves(
        setting.optimizer,
        model.context,
        parameters,
        text.codes,
        batches,
        kept,
        lrs.astype(np.float32),
        stops.astype(np.int32),
    )
    at = {int(stop): f"{value:.6f}" for stop, value in zip(stops, np.asarray(evaluated), strict=True)}
    pairs = zip(lrs, np.asarray(losses), strict=True)
    rows = [(k, f"{lr:.8g}", f"{loss:.6f}", at.get(k, "")) for k, (lr, loss) in enumerate(pairs)]
    return [*rows, (setting.steps, "", "", at[setting.steps])]


def write(setting: Setting, folder: Path, **options) -> bool:
    """Train and write the run's file, unless it is there; whether it was trained."""
    path = folder / f"{setting.name}.csv"
    if path.exists():
        return False
    rows = train(setting, **options)
    with atomic_path(path) as temporary, Path(temporary).open("w", newline="") as file:
        csv.writer(file).writerows([("step", "lr", "loss", "eval_loss"), *rows])
    return True


def main() -> None:
    """Write the logs that are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("forecast-logs"), help="folder to write")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="runs whose names match, such as '*sgd-cosine*'")
    parser.add_argument("--list", action="store_true", help="print the names of the runs, and train nothing")
    arguments = parser.parse_args()
    chosen = [setting for setting in settings() if fnmatch.fnmatchcase(setting.name, arguments.only)]
    if not chosen:
        parser.error(f"--only: got {arguments.only!r}, which matches no run; see their names with --list.")
    if arguments.list:
        print(*(setting.name for setting in chosen), sep="\n")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for setting in chosen:
        begin = time.perf_counter()
        done = f"{time.perf_counter() - begin:.1f} s" if write(setting, arguments.out) else "there already"
        print(f"{setting.name}: {done}", flush=True)


if __name__ == "__main__":
    main()
