"""What users add from outside: an optimizer with its SDE, a noise law and a scaling rule, by their declarations."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sdelens as sl
from sdelens.core import declarations
from sdelens.scaling import _rules
from tests.checks import declarations_restored, shell


class Halved(sl.SGD):
    """Half a step of SGD."""

    name: ClassVar[str] = "halved"

    def _direction(self):
        return optax.scale(0.5)


class HalvedSDE(sl.OptimizerSDE):
    """dX = −(∇f/2 + θX) dt − √η/2 Σ^{1/2} dW."""

    uses: ClassVar[str] = "root"
    optimizer: Halved

    def drift(self, t, y, grad):
        return sl.State(-0.5 * grad - self.optimizer.decay_rate * y.x)

    def apply_diffusion(self, t, y, grad, dW):
        return sl.State(-0.5 * jnp.sqrt(self.optimizer.lr) * self.noise.apply_root(y.x, dW))


class Wide(sl.GaussianNoise):
    """Normal noise of three times the scale."""

    def __init__(self, scale):
        super().__init__(3.0 * np.asarray(scale))


@pytest.fixture
def toys():
    """All three declared, and forgotten afterwards."""
    with declarations_restored():
        sl.declare_optimizer(sl.OptimizerDeclaration("halved", "Halved SGD", "half of SGD", Halved, "linear"))
        sl.register_sdes(Halved, {"sde": HalvedSDE})
        sl.declare_noise(sl.NoiseDeclaration("wide", "wide normal", "three times as wide", Wide))
        sl.scaling.add_rule(dataclasses.replace(sl.scaling.RULES["linear"], name="mine", lr=2.0))
        yield


def test_an_optimizer_a_law_and_a_rule_from_outside_run_everywhere(toys):
    """At one step of Δt = η the scheme of this SDE is the optimizer: equal means within 5 standard errors."""
    problem = sl.Quadratic([1.0, 2.0])
    assert sl.models_of(Halved(0.2)) == ["optimizer", "sde", "empirical"]
    data = sl.compare(problem, Wide(0.1), Halved(0.2), steps=10, paths=512).dataset.isel(step=-1)
    mean, sem = data.loss_mean.values, data.loss_sem.values
    assert abs(mean[0] - mean[1]) < 5 * np.hypot(*sem)
    said = shell(
        "compare", "--optimizer", "halved(lr=0.2)", "--noise", "wide(0.1)", "--steps", "3", "--paths", "16"
    ).stdout
    assert said.startswith("Halved SGD (lr=0.2")
    assert "\nsde " in said
    assert "halved" in shell("info").stdout
    assert sl.scaling.rescale(Halved(0.1), 4).optimizer.lr == pytest.approx(0.4)  # its default rule
    assert sl.scaling.rescale({"optimizer": "halved", "lr": 0.1}, 4, "mine").optimizer["lr"] == pytest.approx(1.6)
    assert "0.4" in shell("scale", "halved", "--lr", "0.1", "--batch", "8", "--to", "32").stdout


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: sl.declare_optimizer(sl.OptimizerDeclaration("adamw", "", "", Halved, "linear")), "already"),
        (lambda: sl.declare_optimizer(sl.OptimizerDeclaration("adam", "", "", Halved, "linear")), "already"),
        (
            lambda: sl.declare_optimizer(sl.OptimizerDeclaration("x", "", "", Halved, "linear", family="sdg")),
            "family: got 'sdg'; choose one of sgd",
        ),
        (lambda: sl.declare_noise(sl.NoiseDeclaration("laplace", "", "", Wide)), "already"),
        (lambda: sl.register_sdes(sl.SGD, {"sde": HalvedSDE}), "got 'sde', which is already the name of an SDE of SGD"),
        (lambda: sl.register_sdes(Wide, {"sde": HalvedSDE}), "optimizer: got <class"),
        (lambda: sl.scaling.add_rule(sl.scaling.RULES["linear"]), "already"),
    ],
)
def test_names_are_given_once(declare, message):
    before = [dict(registry) for registry in (declarations.OPTIMIZERS, declarations.NOISES, _rules.RULES)]
    with pytest.raises((ValueError, TypeError), match=message):
        declare()
    assert before == [dict(registry) for registry in (declarations.OPTIMIZERS, declarations.NOISES, _rules.RULES)]
