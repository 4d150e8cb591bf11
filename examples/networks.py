"""How well do SDEs track on real networks? Five architectures, with injected noise or real mini-batches.

    python examples/networks.py                          # small networks on 128 digits, injected noise
    python examples/networks.py --noise minibatch        # real mini-batches of 32; the MLP on all digits
    python examples/networks.py --noise minibatch --networks mlp --paths 256 --covariance diagonal
    python examples/networks.py --size full --dry-run    # estimate the cost of the full sizes

Size small has narrow networks on a class-balanced subset and takes minutes on two cores; size full has the default
sizes of `sl.network` and takes hours. Figures, tables and data are written to the folder given by --out; a run that was
killed continues with --resume.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import sdelens as sl
from sdelens.core.text import text_table
from sdelens.results.report import claim_folder, write_report

SMALL = {
    "mlp": dict(dataset="digits", subset=128, width=16, depth=2),
    "cnn": dict(subset=128, channels=4, dense=16),
    "resnet": dict(subset=128, channels=4, dense=16),
    "vit": dict(subset=128, width=12, depth=1, heads=2, mlp=24),
    "transformer": dict(subset=64, width=12, depth=1, heads=2, mlp=24, context=16),
}
# The MLP of docs/minibatch.md, 64-32-10 on all 1797 digits.
ALL_DIGITS = SMALL | {"mlp": dict(dataset="digits", width=32, depth=1)}
FULL = {"mlp": {}, **{name: dict(subset=512) for name in SMALL if name != "mlp"}}

# Learning rates at which the loss decreases substantially within the run; noise about as large as the gradient.
INJECTED = {
    "signsgd": (sl.SignSGD(lr=1e-3), 0.02),
    "rmspropw": (sl.RMSpropW(lr=1e-3, b2=0.99, weight_decay=0.01), 0.01),
    "adamw": (sl.AdamW(lr=1e-3, b1=0.9, b2=0.99, weight_decay=0.01), 0.01),
}
MINIBATCH = {
    "sgd": sl.SGD(lr=0.05),
    "signsgd": sl.SignSGD(lr=1e-3),
    "rmspropw": sl.RMSpropW(lr=1e-3, b2=0.99),
    "adamw": sl.AdamW(lr=1e-3, b1=0.9, b2=0.99),
}


def main() -> None:
    """Run the selected comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(SMALL), help="comma-separated (default: all)")
    parser.add_argument("--optimizers", help="comma-separated (default: all)")
    parser.add_argument("--noise", choices=["injected", "minibatch"], default="injected")
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--refresh", type=int, default=10, help="steps for which second moments are reused (default 10)"
    )
    parser.add_argument(
        "--covariance", choices=["exact", "diagonal"], default="exact", help="covariance of the SDE's noise"
    )
    parser.add_argument(
        "--signs", choices=["sampled", "edgeworth", "normal"], default="sampled", help="law of the signs for SignSGD"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--paths", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="networks", help="folder to write (default: networks)")
    parser.add_argument("--resume", action="store_true", help="continue a run that was killed")
    parser.add_argument("--dry-run", action="store_true", help="only estimate the cost of each comparison")
    given = parser.parse_args()
    cases = INJECTED if given.noise == "injected" else MINIBATCH
    optimizers = given.optimizers.split(",") if given.optimizers else list(cases)
    record = sl.Record(every=10, observables=["accuracy"], marginals=8)
    options = dict(steps=given.steps, paths=given.paths, seed=given.seed, record=record)
    if given.dry_run:
        for label, case in subjects(given, cases, optimizers):
            print(f"{label}: {sl.estimate(*case, **options)}", flush=True)
        return
    with claim_folder(given.out, overwrite=True) as folder:
        run_all(given, subjects(given, cases, optimizers), options, folder)


def subjects(given: argparse.Namespace, cases: dict, optimizers: list[str]):
    """For every comparison its label, and its problem, noise and optimizer."""
    small = SMALL if given.noise == "injected" else ALL_DIGITS
    for name in given.networks.split(","):
        problem = sl.network(name, **(small if given.size == "small" else FULL)[name])
        for optimizer in optimizers:
            if given.noise == "injected":
                specification, scale = cases[optimizer]
                noise = sl.GaussianNoise(scale)
            else:
                specification = cases[optimizer]
                refresh = 1 if optimizer == "signsgd" and given.signs == "sampled" else given.refresh
                law = dict(covariance=given.covariance, signs=given.signs)
                noise = sl.MinibatchNoise(given.batch_size, refresh=refresh, **law)
            yield f"{optimizer}-{name}", (problem, noise, specification)


def run_all(given: argparse.Namespace, cases, options: dict, folder: Path) -> None:
    """Run every comparison with its own checkpoints; load those that are already finished from their files."""
    begin, results, rows, head = time.perf_counter(), {}, [], []
    for label, case in cases:
        done = folder / f"{label}.nc"
        if given.resume and done.exists():
            result = sl.load(done)
        else:
            with sl.keep_checkpoints(folder / f"{label}.checkpoint", resume=given.resume) as kept:
                result = sl.compare(*case, **options, execution=sl.Execution(checkpoint=kept))
                result.save(done)
        results[label] = result
        head, body = result.table()
        head = ["on", "optimizer", *head]
        rows += [[result.info["problem"]["name"], case[2].name, *row] for row in body]
        print(f"{time.perf_counter() - begin:6.1f} s  {label}", flush=True)
    print("", *text_table(head, rows), "", *result.notes()[:1], sep="\n")
    title = f"SDEs of optimizers on networks, {given.noise} noise"
    page = write_report(folder, results, title, shlex.join(["python", "examples/networks.py", *sys.argv[1:]]))
    print(f"\n{time.perf_counter() - begin:.0f} s in all. Figures, tables and data: {page}")


if __name__ == "__main__":
    main()
