"""Runs made from a known power-law quadratic, and a naive reference of the law that is fitted."""

import dataclasses
import math

import jax
import numpy as np
from scipy.special import erf

import sdelens as sl
from sdelens.core.compilation import quick
from sdelens.forecast._blocks import blocks_of, edges_of, padded
from sdelens.forecast._dynamics import Setting, kind_of, many, setting_of

TRUTH = sl.forecast.PowerLaw(
    infimum=1.5,
    reducible=3.0,
    risk_exponent=1.5,
    curvature=4e4,
    curvature_exponent=2.0,
    noise=400.0,
    norm_growth=1000.0,
)
STEPS = 4000
_MANY = quick(many, static_argnames="kind")


def warm_up(schedule=None, steps=100):
    return sl.Warmup(steps, schedule)


def adamw(schedule=None, lr=1e-3, **options):
    return sl.AdamW(lr=lr, b1=0.9, b2=0.95, weight_decay=0.1, schedule=warm_up(schedule), **options)


def curve(numbers, optimizer, at, total, batch_size=1.0, log_size=0.0):
    """Losses at steps `at` of a run on a known quadratic."""
    rates = sl.forecast.Run(([total], [1.0]), optimizer).rates()
    edges = edges_of(rates, at)
    blocks = padded([blocks_of(rates, edges)])
    with jax.enable_x64(True):
        setting = Setting(*(np.array([float(v)]) for v in setting_of(optimizer, batch_size, log_size)))
        found = np.asarray(_MANY(kind_of(optimizer), numbers.logs, setting, blocks))[0]
    return found[np.searchsorted(edges, at)]


def run(numbers, optimizer, name, total=STEPS, scatter=0.002, seed=0, points=120, **sizes):
    """A logged run: independent errors of a relative standard deviation `scatter`."""
    at = np.unique(np.geomspace(20, total, points).round().astype(int))
    reference = numbers.reference_size
    log_size = math.log(sizes["size"] / reference) if reference and "size" in sizes else 0.0
    losses = curve(numbers, optimizer, at, total, sizes.get("batch_size") or 1.0, log_size)
    noise = np.random.default_rng(seed).normal(size=len(at))
    return sl.forecast.Run((at, losses * np.exp(scatter * noise)), optimizer, name=name, steps=total, **sizes)


def three_runs(seed=0, numbers=TRUTH, **options):
    """Constant, cosine and a drop to a third, with a known scatter."""
    drop = lambda k: jax.numpy.where(k < STEPS // 2, 1.0, 0.3)  # noqa: E731
    schedules = {"constant": None, "cosine": sl.Cosine(STEPS - 100, end=0.1), "drop": drop}
    return [
        run(numbers, adamw(schedule), name, seed=10 * seed + i, **options)
        for i, (name, schedule) in enumerate(schedules.items())
    ]


def naive(optimizer, numbers, rates, modes, weights, batch_size=1.0):
    """Loss after every step, one step at a time, straight from the equations; modes i with weights."""
    kind = kind_of(optimizer)
    growth = numbers.norm_growth
    curvature = numbers.curvature * modes**-numbers.curvature_exponent
    square = numbers.noise**2 * modes**-numbers.curvature_exponent / batch_size
    risk = numbers.reducible * (numbers.risk_exponent - 1) * modes**-numbers.risk_exponent
    mean, variance, norm = np.sqrt(2 * risk / curvature), np.zeros_like(modes), 1.0
    _, _, decay, drift, diffusion = setting_of(optimizer, batch_size, 0.0)
    found = []
    for rate in rates:
        total = curvature**2 * (mean**2 + variance) + square
        size = rate
        if kind != "linear":
            moved = diffusion if kind == "sign" else 1.0
            after = norm * (1 - 2 * rate * decay) + growth * rate**2 * moved
            size, norm = rate / math.sqrt((norm + after) / 2), after
        if kind == "linear":
            phi, psi, spread = 1.0, 1.0, square
        elif kind == "root":
            phi = psi = drift / np.sqrt(total)
            spread = diffusion * square / total
        else:
            width = curvature**2 * variance + drift**2 * square
            a = curvature * mean / np.sqrt(2 * width)
            phi = erf(a) / np.maximum(curvature * mean, 1e-300)
            psi = np.sqrt(2 / (np.pi * width)) * np.exp(-(a**2))
            spread = diffusion * (1 - erf(a) ** 2)
        variance = (1 - size * psi * curvature) ** 2 * variance + size**2 * spread
        mean = (1 - size * phi * curvature) * mean
        found.append(weights @ (0.5 * curvature * (mean**2 + variance)))
    return np.array(found)


def with_numbers(**changes):
    return dataclasses.replace(TRUTH, **changes)
