"""Comparison of every bound on the mean loss with simulations of random quadratics: which bounds hold, how tightly?

A bound counts as exceeded if the mean loss minus 4 standard errors lies above it at any of 20 recorded steps after the
start. There are 2000 paths per problem, all with the same start. A quarter of the problems have one dimension; the
others have four, and a third of them each are isotropic, diagonal and rotated.
"""

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import numpy as np

import sdelens as sl

PATHS = 2000
RECORDS = 20


@dataclass
class Case:
    """One problem under one bound."""

    name: str
    form: str
    curvature: np.ndarray
    noise: object
    optimizer: object
    start: np.ndarray
    horizon: float
    phase: int | None = None
    late: bool = False
    """Whether only the asymptote is compared, over the last third of the run."""


@dataclass
class Outcome:
    """Comparison of a bound with a simulation: the largest (mean − 4 sem)/bound, and bound/mean at the end."""

    case: Case
    exceeds: float
    ratio: float


def cases(count: int, seed: int) -> Iterator[Case]:
    """`count` random problems, each under every bound that applies to it."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        dim, kind = (1, "isotropic") if i % 4 == 3 else (4, ("isotropic", "diagonal", "rotated")[i % 3])
        values = np.exp(rng.uniform(np.log(0.3), np.log(4), dim))
        sigma = rng.uniform(0.3, 2, dim)
        if kind == "isotropic":
            values, sigma = np.full(dim, values[0]), np.full(dim, sigma[0])
        basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        curvature = (basis * values) @ basis.T if kind == "rotated" else values
        yield from _under_every_bound(rng, i, curvature, values, sigma)


def _under_every_bound(
    rng: np.random.Generator, i: int, curvature: np.ndarray, values: np.ndarray, sigma: np.ndarray
) -> Iterator[Case]:
    def start(low: float, high: float) -> np.ndarray:
        """A random point at which |Y| lies between two values in every coordinate."""
        grad = np.sqrt(2) * sigma * rng.uniform(low, high, len(sigma)) * rng.choice([-1, 1], len(sigma))
        return grad / curvature if curvature.ndim == 1 else np.linalg.solve(curvature, grad)

    normal, mu, smooth = sl.GaussianNoise(sigma), values.min(), values.max()
    mixing = rng.standard_normal((len(sigma), len(sigma)))
    correlated = sl.GaussianNoise(covariance=mixing @ mixing.T / len(sigma) + 0.1 * np.eye(len(sigma)))
    lr, slow, theta = rng.uniform(0.01, 0.3), np.exp(rng.uniform(-5.8, -2.3)), float(rng.choice([0.0, 0.3, 1.0]))
    sgd = sl.SGD(min(lr, 1.5 / smooth))
    point = rng.uniform(-2, 2, len(sigma))
    yield Case("SGD", "algorithm", curvature, normal if i % 2 else correlated, sgd, point, 4 / mu)
    laws = [normal, *(sl.StudentTNoise(sigma, df) for df in (1, 2, 5)), sl.LaplaceNoise(sigma), sl.UniformNoise(sigma)]
    for law in (normal, laws[i % len(laws)]):
        top = (0.5, 3.0)[i // 2 % 2]
        case = (curvature, law, sl.SignSGD(slow), start(0, top), 6 * sigma.max() / mu)
        yield Case("SignSGD, any start", "algorithm", *case)
    short = 0.3 * 1.4 * sigma.min() / smooth
    for form in ("algorithm", "paper"):
        small = sl.SignSGD(0.1 * slow)
        at = [start(2.5, 5), start(1.2, 1.5), start(0, 0.99)]
        yield Case("SignSGD, phase 1", form, curvature, normal, small, at[0], 3 * short, 1)
        yield Case("SignSGD, phase 2", form, curvature, normal, small, at[1], short, 2)
        yield Case("SignSGD, phase 3", form, curvature, normal, sl.SignSGD(slow), at[2], 6 * sigma.max() / mu, 3)
    slow = np.exp(rng.uniform(-5.8, -3.0))
    rest, near = 5 / (mu / sigma.max() + theta), start(0, 0.05)
    for form in ("algorithm", "paper"):
        if form == "paper" and np.ptp(sigma) > 0:
            continue
        b2, law = 0.999, normal
        if form == "algorithm":
            b2 = (0.999, 0.99, 0.9)[i % 3]
            law = (normal, sl.UniformNoise(math.sqrt(3) * sigma))[i // 3 % 2]
        adam = sl.AdamW(slow, 0.9, b2, weight_decay=theta, v0="second-moment")
        yield Case("AdamW, t → ∞", form, curvature, law, adam, near, rest, late=True)
        yield Case("RMSpropW", form, curvature, law, sl.RMSpropW(slow, b2, weight_decay=theta), near, rest)


def run(case: Case, seed: int) -> Outcome | None:
    """Simulate one case; None if the bound does not apply at any recorded step."""
    problem = sl.Quadratic(case.curvature, start=case.start)
    every = max(int(np.ceil(case.horizon / case.optimizer.lr / RECORDS)), 1)
    options = dict(steps=RECORDS * every, paths=PATHS, seed=seed, record=sl.Record(every=every))
    result = sl.simulate(problem, case.noise, case.optimizer, "optimizer", **options).dataset.isel(model=0)
    found = sl.theory.loss_bound(
        problem, case.noise, case.optimizer, result.time.values, form=case.form, phase=case.phase
    )
    bound = np.full(result.time.shape, found.asymptote) if case.late else found.loss
    used = np.isfinite(bound) & (result.time.values > (0.7 * case.horizon if case.late else 0))
    if not used.any():
        return None
    mean, sem = result.loss_mean.values[used], result.loss_sem.values[used]
    return Outcome(case, float(((mean - 4 * sem) / bound[used]).max()), float(bound[used][-1] / mean[-1]))


def sweep(count: int, seed: int) -> list[Outcome]:
    """The outcomes for `count` random problems."""
    found = (run(case, seed=1000 * seed + i) for i, case in enumerate(cases(count, seed)))
    return [outcome for outcome in found if outcome is not None]


def table(outcomes: list[Outcome]) -> list[str]:
    """A line per bound: the number of runs, how many exceed it and by how much, and the smallest bound/mean."""
    head = f"{'bound':22}{'form':12}{'runs':>6}{'exceeded':>10}{'largest (mean - 4 sem)/bound':>30}"
    lines = [head + f"{'least bound/mean':>18}"]
    for key in dict.fromkeys((o.case.name, o.case.form) for o in outcomes):
        own = [o for o in outcomes if (o.case.name, o.case.form) == key]
        over, most, least = sum(o.exceeds > 1 for o in own), max(o.exceeds for o in own), min(o.ratio for o in own)
        lines.append(f"{key[0]:22}{key[1]:12}{len(own):6}{over:10}{most:30.3f}{least:18.3f}")
    return lines


def main() -> None:
    """Print the table, and the cases that exceed a bound most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes = sweep(arguments.problems, arguments.seed)
    print("\n".join(table(outcomes)))
    over = sorted((o for o in outcomes if o.exceeds > 1), key=lambda o: -o.exceeds)
    print("\nWhere bounds are exceeded most:" if over else "\nNo bound is exceeded.")
    for o in over[:8]:
        values = np.atleast_1d(o.case.curvature)
        spectrum = values if values.ndim == 1 else np.linalg.eigvalsh(values)
        print(
            f"{o.case.name} ({o.case.form}): {o.exceeds:.3f} times, d = {len(spectrum)}, curvature "
            f"{spectrum.min():.2f} to {spectrum.max():.2f}, eta = {o.case.optimizer.lr:.3g}"
        )


if __name__ == "__main__":
    main()
