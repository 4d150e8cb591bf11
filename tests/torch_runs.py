"""Live optimizers and schedulers of PyTorch, after some steps, for the tests of rescaling."""

import copy
import functools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

schedules = torch.optim.lr_scheduler


def trained(kind, **options):
    """A live optimizer that has made some steps on noisy gradients, and its parameters."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(2000)), torch.nn.Parameter(torch.ones(1500))]
    optimizer = getattr(torch.optim, kind)([{"params": [p]} for p in parameters], **options)
    for _ in range(30):
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer


def snapshot(*things):
    """Deep copies of state dicts, and of the attributes that these leave out, as comparable text."""
    return [repr(copy.deepcopy(t.state_dict())) + repr(sorted(vars(t))) + type(t).__name__ for t in things]


STEPS = 500


def smooth(k, *, warmup, end):
    """A function of keyword arguments, as in transformers."""
    return k / warmup if k < warmup else 0.5 * (1 + math.cos(math.pi * (k - warmup) / (end - warmup)))


SCHEDULERS = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, functools.partial(smooth, warmup=50, end=STEPS)),
    "LambdaLR of a table": lambda o: schedules.LambdaLR(o, [1 / (1 + k / 100) for k in range(600)].__getitem__),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda k: 0.997),
    "StepLR": lambda o: schedules.StepLR(o, 60, 0.5),
    "StepLR to MultiStepLR": lambda o: schedules.StepLR(o, 61, 0.5),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [101, 213, 214], 0.3),
    "ConstantLR": lambda o: schedules.ConstantLR(o, 0.2, 133),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.01, 1.0, 203),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.99),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 401, 2.0),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 251, 1e-3),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 72, 2, 1e-3),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.2, total_steps=503, base_momentum=0.8, max_momentum=0.95),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 87, 93, mode="exp_range", gamma=0.999, base_momentum=0.8),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.01, 1.0, 99), schedules.CosineAnnealingLR(o, 403)], [99]
    ),
    "ChainedScheduler": lambda o: schedules.ChainedScheduler(
        [schedules.LinearLR(o, 0.1, 1.0, 60), schedules.ExponentialLR(o, 0.998)]
    ),
}


def scheduled(make, steps=0, **options):
    """An optimizer with one parameter and its scheduler after some steps."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], **{"lr": 0.1, "betas": (0.95, 0.99), **options})
    scheduler = make(optimizer)
    rates, momenta = [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        scheduler.step()
    return optimizer, scheduler, np.array(rates), np.array(momenta)


def same(a, b):
    """Whether two nested states are equal, tensors included."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if hasattr(a, "numel") else a == b
