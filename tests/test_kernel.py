"""Kernels of a GPU: interpreted, they give the numbers of the usual steps, and all of them are lowered for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import sdelens as sl
from sdelens.cases.case import Case
from sdelens.core.compilation import quick
from sdelens.core.random import Stream, stream_key
from sdelens.integrate.kernel import InKernel, NoKernelError, _erf, in_kernel
from sdelens.run.models import ClosedForm, DiscreteOptimizer
from sdelens.sdes import SGDSDE

CURVATURE, NOISE = np.linspace(1, 2, 5), sl.GaussianNoise(np.linspace(0.1, 0.3, 5))  # an odd number of coordinates
RMSPROP = sl.RMSpropW(1e-2, 0.9, 1e-8, 0.01)
FUNCTION = sl.Problem(lambda x: (x**2).sum(), start=np.ones(2))


def stepper(model, optimizer=RMSPROP, noise=NOISE, problem=None):
    problem = sl.Quadratic(CURVATURE, start=1.0) if problem is None else problem
    chosen = DiscreteOptimizer() if model == "optimizer" else model
    chosen = ClosedForm(chosen) if isinstance(chosen, str) else chosen
    return chosen.stepper(Case.checked(problem, noise, optimizer, None, 100))


@quick
def _ended(stepper, stream):
    """States after steps 3 to 6 of 96 paths, with and without a kernel."""
    wide = lambda a: jnp.broadcast_to(a[:, None], (*a.shape, 96)) if jnp.ndim(a) else jnp.asarray(a)  # noqa: E731
    begin = jax.tree.map(wide, stepper.init(stream))
    return [s.steps(jnp.int32(3), jnp.int32(7), begin, stream) for s in (stepper, InKernel(stepper, interpret=True))]


@pytest.mark.parametrize(
    "moved",
    [
        stepper("sde"),
        stepper("full-noise", sl.AdamW(0.01, weight_decay=0.1, schedule=sl.Cosine(50))),
        stepper("optimizer", sl.AdamW(0.01, weight_decay=0.1)),
        stepper("sde", sl.SignSGD(0.01)),
        stepper("optimizer", sl.SGD(0.1), sl.LaplaceNoise(0.2)),
        stepper(ClosedForm("sde", substeps=3, increments="rademacher")),
    ],
    ids=["RMSpropW's SDE", "AdamW's with full noise", "AdamW", "SignSGD's SDE", "SGD, Laplace", "substeps of signs"],
)
def test_a_kernel_gives_the_numbers_of_the_steps(moved):
    """Up to rounding (a few units of 6e-8), for an odd number of coordinates and blocks of 32 paths."""
    usual, ours = _ended(moved, Stream(stream_key(0, "test"), np.arange(7, 103, dtype=np.uint32)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7), usual, ours)
    assert in_kernel(moved, interpret=False).stepper is moved  # it is lowered for a GPU, on any machine


class Coupled(SGDSDE):
    """An SDE whose drift is the mean of the gradient over the coordinates."""

    def drift(self, t, y, grad):
        return sl.State(-grad.mean(axis=0, keepdims=True) + 0 * y.x)


class Clipped(SGDSDE):
    """An SDE whose drift is clipped to a norm that it does not reach near the start."""

    def drift(self, t, y, grad):
        norm = jnp.sqrt((grad**2).sum(axis=0, keepdims=True))
        return sl.State(-grad / jnp.maximum(1, norm / 100))


class Frozen(SGDSDE):
    """An SDE in which only the first ten coordinates have a drift."""

    def drift(self, t, y, grad):
        return sl.State(jnp.where(jnp.arange(grad.shape[0])[:, None] < 10, -grad, 0))


REFUSED = {
    "its coordinates do not move independently": lambda: stepper(ClosedForm(Clipped), sl.SGD(0.1)),
    "do not move independently of one another": lambda: stepper(
        ClosedForm(Frozen), sl.SGD(0.1), sl.GaussianNoise(0.1), sl.Quadratic(np.ones(12))
    ),
    "its coordinates do not move": lambda: stepper(ClosedForm(Coupled), sl.SGD(1e-4)),
    "several random numbers per coordinate": lambda: stepper("sde", sl.Lion(0.01)),
    "has a matrix or another array": lambda: stepper(
        "sde", noise=sl.GaussianNoise(0.1), problem=sl.Quadratic(np.eye(2) + 1.0)
    ),
    "only optimizers and SDEs in closed form": lambda: stepper(sl.Empirical()),
    "its steps use arrays of constants": lambda: stepper("optimizer", sl.SignSGD(0.01), sl.StudentTNoise(0.1, 3.0)),
    "computed for each coordinate by itself": lambda: stepper("sde", sl.SGD(0.1), problem=sl.Rosenbrock(np.ones(5))),
    "dominates the cost": lambda: stepper("sde", RMSPROP, sl.GaussianNoise(0.1), FUNCTION),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_models_without_a_kernel_are_refused(reason):
    with pytest.raises(NoKernelError, match=reason):
        in_kernel(REFUSED[reason](), interpret=True)


def test_a_run_with_kernels_is_the_same_run():
    """On two devices with 101 paths, every 10th of 45 steps; a model without a kernel is named."""

    def compared(kernel):
        execution = sl.Execution(kernel=kernel, progress=False)
        options = dict(steps=45, paths=101, record=sl.Record(every=10, keep_paths=3), execution=execution)
        return sl.compare(sl.Quadratic(CURVATURE, start=1.0), NOISE, RMSPROP, ["sde", "empirical"], **options).dataset

    with pytest.warns(RuntimeWarning, match="kernel: the model 'empirical' runs without one: only optimizers"):
        ours = compared(True)
    usual = compared(False)
    for name in ("loss_mean", "x_mean", "x_var", "path_x"):
        np.testing.assert_allclose(ours[name], usual[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (dict(kernel=1), TypeError, "kernel: got 1; give True or False"),
        (dict(kernel=True, parameter_shards=2), ValueError, "kernel: got True, but the parameters of a path are split"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        sl.Execution(**given)


def test_one_coordinate_draws_what_it_draws_among_all():
    draws = Stream(stream_key(0, "test"), np.arange(9, dtype=np.uint32))

    @quick
    def drawn(draws):
        whole = draws.at(3)
        one = [whole._replace(key=(whole.key[0], whole.key[1]), coordinate=(jnp.uint32(35), i)) for i in (0, 1)]
        laws = [lambda s, n: s.normal(n, jnp.float32), lambda s, n: s.signs(n, jnp.float32), lambda s, n: s.bits(n)[1]]
        return [(law(whole, 80)[70:72], jnp.concatenate([law(s, 1) for s in one])) for law in laws]

    for among_all, alone in drawn(draws):
        np.testing.assert_array_equal(among_all, alone)


def test_the_error_function_of_kernels_is_accurate():
    x = np.concatenate([-np.geomspace(1e-30, 20, 999), [0], np.geomspace(1e-30, 20, 999)]).astype(np.float32)
    np.testing.assert_allclose(quick(_erf)(x), special.erf(x.astype(np.float64)), rtol=4e-7)
