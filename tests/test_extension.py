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
from sdelens.sdes import AdamWSDE, _checks
from tests.checks import compilations, declarations_restored, shell


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


class Normalised(HalvedSDE):
    """A norm over all coordinates of all paths."""

    def drift(self, t, y, grad):
        return sl.State(-grad / jnp.linalg.norm(grad))


class Summed(HalvedSDE):
    """A sum over all coordinates of all paths."""

    def apply_diffusion(self, t, y, grad, dW):
        return sl.State(grad.sum() * dW)


class Capped(AdamWSDE):
    """An accumulator that depends on that of other paths."""

    def drift(self, t, y, grad):
        return super().drift(t, y, grad)._replace(v=y.v.max() - y.v)


class Pathwise(AdamWSDE):
    """Reductions over the coordinates of each path."""

    def drift(self, t, y, grad):
        found = super().drift(t, y, grad)
        return found._replace(v=found.v - y.v.mean(axis=0) + grad.sum(axis=0, keepdims=True))


class Ahead(HalvedSDE):
    """It reads an accumulator that SGD does not have."""

    def drift(self, t, y, grad):
        return sl.State(-grad / jnp.sqrt(y.v))


class Surplus(HalvedSDE):
    """It moves an accumulator that SGD does not have."""

    def drift(self, t, y, grad):
        return sl.State(-grad, v=grad**2)


class Rows(HalvedSDE):
    """One number per coordinate, on the axis of the paths."""

    def drift(self, t, y, grad):
        return sl.State(-grad * jnp.ones(3))


@pytest.mark.parametrize(
    ("kind", "optimizer", "message"),
    [
        (Normalised, sl.SGD(0.1), r"Normalised.drift mixes paths: its x is .* axis=0, keepdims=True, for example"),
        (Summed, sl.SGD(0.1), r"Summed.apply_diffusion mixes paths: its x is .*shape \(d, P\), with one column per"),
        (Capped, sl.AdamW(0.1), "Capped.drift mixes paths: its v is different for 4 paths together and for each of"),
        (Ahead, sl.SGD(0.1), "Ahead.drift fails at a state with x only, of shape .*sqrt"),
        (Surplus, sl.SGD(0.1), "Surplus.drift returns v, but the state has no v, only x; leave it out"),
        (Rows, sl.SGD(0.1), r"Rows.drift fails at a state with x only, of shape \(3, 4\).*arrays have shape \(d, P\)"),
    ],
)
def test_an_sde_that_mixes_paths_or_does_not_fit_is_refused(kind, optimizer, message):
    with pytest.raises(ValueError, match="models: " + message):
        sl.compare(sl.Quadratic([1.0, 2.0, 3.0]), sl.GaussianNoise(1.0), optimizer, ["optimizer", kind], steps=2)


def test_a_registered_sde_is_checked_once_and_ours_is_not(monkeypatch):
    problem, noise = sl.Quadratic([1.0, 2.0, 3.0]), sl.GaussianNoise(1.0)
    with declarations_restored():
        sl.register_sdes(Halved, {"sde": Normalised})
        for run in (sl.simulate, sl.estimate):
            with pytest.raises(ValueError, match=r"models: Normalised.drift mixes paths"):
                run(problem, noise, Halved(0.1), steps=2)
    sde = Pathwise(problem, noise.bind(problem), sl.AdamW(0.1))
    with compilations() as compiled:
        for _ in range(2):
            _checks.check_pathwise(sde, problem.start)
    assert len(compiled) == 1
    monkeypatch.setattr(_checks, "_mixed", None)
    _checks.check_pathwise(AdamWSDE(problem, noise.bind(problem), sl.AdamW(0.1)), problem.start)


FACTOR, WEIGHTS = 1.0, np.ones(2)


class Scaled(HalvedSDE):
    """It reads a global variable, and a variable of its class."""

    rate: ClassVar[float] = 1.0

    def drift(self, t, y, grad):
        return sl.State(-FACTOR * self.rate * grad)

    def apply_diffusion(self, t, y, grad, dW):
        return sl.State(0.0 * dW)


def weighted(p):
    return jnp.sum(WEIGHTS * p)


def test_changed_variables_that_functions_read_are_noticed(monkeypatch):
    """Euler steps of Δt = η without noise multiply x by 1 − 0.1 FACTOR rate; a loss reads a variable of its closure."""
    power = 2

    def loss(p):
        return jnp.sum(jnp.abs(p) ** power)

    line, noise = sl.Quadratic([1.0, 1.0], start=1.0), sl.GaussianNoise(1e-6)
    record, of_loss = sl.Record(observables={"weighted": weighted}), sl.Problem(loss, jnp.full(2, 3.0))

    def found():
        data = sl.simulate(line, noise, sl.SGD(0.1), Scaled, steps=1, paths=2, record=record).dataset
        other = sl.simulate(of_loss, noise, sl.SGD(0.1), "optimizer", steps=1, paths=2).dataset
        return *data.observable_mean.values.ravel(), float(other.loss_mean[0, 0])

    assert found() == pytest.approx((2.0, 1.8, 18.0))
    with compilations() as compiled:
        assert found() == pytest.approx((2.0, 1.8, 18.0))
    assert compiled == []
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    power = 3
    assert found() == pytest.approx((2.0, 1.6, 54.0))
    monkeypatch.setattr(Scaled, "rate", 2.0)
    monkeypatch.setitem(globals(), "WEIGHTS", np.array([1.0, 3.0]))
    assert found() == pytest.approx((4.0, 2.4, 54.0))
    WEIGHTS[0] = 5.0
    with pytest.raises(ValueError, match=r"array of shape \(2,\) that a function reads was changed in place"):
        found()
