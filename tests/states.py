"""Small states of optimizers, and how the tensors that are found in them are compared."""

import numpy as np
import pytest

try:
    import torch
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")


def by_name(tensors):
    return {tensor.name: tensor for tensor in tensors}


def reasons(tensors):
    return {tensor.reason for tensor in tensors}


def assert_moments(found, wanted):
    """The tensors of two sources, in order, apart from their names."""
    found, wanted = list(found), list(wanted)
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one.reason is None, one.reason
        assert (one.steps, one.b1, one.b2, one.size) == (other.steps, other.b1, other.b2, other.size)
        np.testing.assert_array_equal(np.asarray(one.m), np.asarray(other.m))
        np.testing.assert_array_equal(np.asarray(one.v), np.asarray(other.v))


def trained(make=None, steps=3, model=None):
    """A small model and its optimizer after a few steps with random gradients."""
    torch.manual_seed(0)
    model = model or torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    optimizer = (make or (lambda m: torch.optim.AdamW(m.parameters(), betas=(0.9, 0.95))))(model)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return model, optimizer


BASE = dict(lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
FLAGS = dict(maximize=False, foreach=None, capturable=False, differentiable=False)


def saved(fields, group, shape=(2, 3)):
    """A state dict of one parameter with these fields, each an array of the parameter's shape."""
    torch.manual_seed(1)
    held = {name: torch.rand(shape) if value is None else value for name, value in fields.items()}
    return {"state": {0: held}, "param_groups": [{**group, "params": [0]}]}


MEANS = dict(exp_avg=None, exp_avg_sq=None)
