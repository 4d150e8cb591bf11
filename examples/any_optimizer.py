"""SDEs of optax optimizers: do they track on real mini-batches, and what is the effect of the number of samples?

    python examples/any_optimizer.py                                # fifteen optimizers, an MLP on all digits
    python examples/any_optimizer.py --network cnn --optimizers adam,lion,sgd
    python examples/any_optimizer.py --optimizers adam,lion --samples 2,4,16 --rates 0.3,1,3 --paths 64

No equations are needed: the coefficients of the SDE are estimated from sampled updates of the optimizer. Figures,
tables and data are written to the folder given by --out; a run that was killed continues with --resume.
"""

import argparse
import os
import shlex
import sys
import time

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import optax
import optax.contrib

import sdelens as sl
from sdelens.core.text import text_table
from sdelens.results.report import claim_folder, write_report

NETWORKS = {
    "mlp": dict(dataset="digits", width=32, depth=1),
    "cnn": dict(subset=128, channels=4, dense=16),
    "vit": dict(subset=128, width=12, depth=1, heads=2, mlp=24),
}

# For each name a learning rate, and a function from learning rate to optimizer.
OPTIMIZERS = {
    "sgd": (0.05, optax.sgd),
    "momentum": (0.02, lambda lr: optax.sgd(lr, momentum=0.9)),
    "clipping": (0.05, lambda lr: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(lr, momentum=0.9))),
    "signsgd": (1e-3, optax.sign_sgd),
    "signum": (1e-3, optax.signum),
    "lion": (1e-3, optax.lion),
    "rmsprop": (1e-3, lambda lr: optax.rmsprop(lr, decay=0.99)),
    "adam": (1e-3, lambda lr: optax.adam(lr, b2=0.99)),
    "adamw": (3e-3, lambda lr: optax.adamw(lr, b2=0.95)),
    "adagrad": (0.02, optax.adagrad),
    "adagrad-0": (0.02, lambda lr: optax.adagrad(lr, initial_accumulator_value=0.0)),
    "ademamix": (1e-3, lambda lr: optax.contrib.ademamix(lr, b2=0.99)),
    "schedule-free-sgd": (0.1, optax.contrib.schedule_free_sgd),
    "schedule-free-adamw": (3e-3, lambda lr: optax.contrib.schedule_free_adamw(lr, b2=0.99)),
    "muon": (5e-3, optax.contrib.muon),
}


def main() -> None:
    """Run the comparisons and write one page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="comma-separated (default: all)")
    parser.add_argument("--network", choices=list(NETWORKS), default="mlp")
    parser.add_argument("--samples", default="8", help="updates per step of the SDE, comma-separated (default 8)")
    parser.add_argument("--rates", default="1", help="factors of the learning rates, comma-separated (default 1)")
    parser.add_argument("--accumulators", choices=["lognormal", "update", "drift"], default="lognormal")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--paths", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="any-optimizer", help="folder to write (default: any-optimizer)")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run has finished")
    given = parser.parse_args()
    problem, noise = sl.network(given.network, **NETWORKS[given.network]), sl.MinibatchNoise(given.batch_size)
    models = {"optimizer": "optimizer"} | {
        f"K = {k}": sl.Empirical(samples=int(k), accumulators=given.accumulators) for k in given.samples.split(",")
    }
    record = sl.Record(every=10, marginals=8)
    options = dict(steps=given.steps, paths=given.paths, seed=given.seed, record=record)
    begin, results, rows = time.perf_counter(), {}, []
    with claim_folder(given.out, overwrite=True) as folder:
        for name in given.optimizers.split(","):
            for factor in given.rates.split(","):
                base, make = OPTIMIZERS[name]
                lr = base * float(factor)
                label = f"{name}-{lr:g}"
                done = folder / f"{label}.nc"
                if given.resume and done.exists():
                    result = sl.load(done)
                else:
                    optimizer = sl.FromOptax(make, lr=lr, name=name)
                    result = sl.compare(problem, noise, optimizer, models, **options)
                    result.save(done)
                results[label] = result
                rows += summary(name, lr, result)
                print(f"{time.perf_counter() - begin:6.1f} s  {label}: {rows[-1]}", flush=True)
        head = ["optimizer", "lr", "K", "error", "≤ (99 %)", "floor", "spread", "99 % limits", "W1 / null", "cost"]
        print("", *text_table(head, rows), sep="\n")
        title = f"The SDE of any optimizer: {given.network.upper()}, mini-batches of {given.batch_size}"
        page = write_report(folder, results, title, shlex.join(["python", "examples/any_optimizer.py", *sys.argv[1:]]))
    print(f"\n{time.perf_counter() - begin:.0f} s in all. Figures, tables and data: {page}")


def summary(name: str, lr: float, result: sl.Result) -> list[list[str]]:
    """Rows of the table, one per number of samples. Cost: time per sample relative to a step of the optimizer."""
    errors, laws = result.errors(), result.laws(quantities=["w1"]).table
    seconds = {label: model["wall_time"] for label, model in result.info["models"].items()}
    rows = []
    for model, row in errors.iterrows():
        far = laws.loc[(model, laws.index.unique("step")[-1], "w1", "all")]
        samples = int(str(model).removeprefix("K = "))
        cost = seconds[str(model)] / seconds["optimizer"] / samples
        shares = [row.error, row.error_upper, row.floor]
        numbers = [*(f"{100 * share:.2g} %" for share in shares), f"{row.spread:.2f}"]
        numbers += [f"{row.spread_lower:.2f} to {row.spread_upper:.2f}", f"{far.value:.2f} / {far.null:.2f}"]
        rows.append([name, f"{lr:g}", str(samples), *numbers, f"{cost:.2f}"])
    return rows


if __name__ == "__main__":
    main()
