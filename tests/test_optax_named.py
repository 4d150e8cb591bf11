"""Every named optimizer of optax through `compare`, without code of its own; those that cannot are known."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl
from sdelens.core.random import Stream
from sdelens.run.experiment import prepare
from sdelens.run.options import Options
from sdelens.shell.case_options import optax_optimizers
from tests.checks import tiered

ASK_FOR_MORE = {
    "lbfgs": "the loss and its gradient as a function (line search)",
    "contrib.momo": "the loss of the batch",
    "contrib.momo_adam": "the loss of the batch",
}
OTHER_ARGUMENTS = {
    "contrib.dpsgd": "per-example gradients",
    "contrib.schedule_free": "another optimizer",
}
# Their first updates divide by a v of before, which is 0; signs of products of gradients decide rprop's steps.
COARSE = {"contrib.acprop", "contrib.adopt", "rprop"}
KNOWN = optax_optimizers()
# One of every kind of state and of update: means, squares and their sums, signs, norms of a layer, matrices and their
# factors, projections, largest values so far, counts of signs, random keys, a distance that is estimated, two momenta,
# an average of the parameters.
KINDS = ["adafactor", "adagrad", "adamw", "amsgrad", "contrib.galore", "contrib.muon"]
KINDS += ["contrib.prodigy", "lamb", "lion", "noisy_sgd", "rprop", "sm3"]
KINDS += ["contrib.ademamix", "contrib.schedule_free_adamw"]
RUNNING = sorted(KNOWN.keys() - ASK_FOR_MORE.keys() - OTHER_ARGUMENTS.keys())


def made(function: Callable) -> sl.FromOptax:
    return sl.FromOptax(lambda lr: function(learning_rate=lr), 1e-2)


def check(name, result):
    """The row of the empirical SDE in the table of errors, at 99.99 %."""
    row = result.errors(confidence=0.9999).loc["empirical"]
    curve = result.dataset.loss_mean.sel(model="empirical").values
    assert row.diverged == 0
    assert np.isfinite(curve).all()
    if name not in COARSE:
        assert row.error_lower < 0.01
    return row


def test_enough_of_them_run():
    assert len(RUNNING) >= 40
    assert set(RUNNING) >= set(KINDS)
    assert KNOWN.keys() >= ASK_FOR_MORE.keys() | OTHER_ARGUMENTS.keys() | COARSE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNNING if name not in KINDS])
def test_every_named_optimizer_is_taken(name):
    """A step of it and of its empirical SDE, of which only the shapes are computed; those of `KINDS` run below."""
    problem = sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0)
    models = ["optimizer", "empirical"]
    experiment = prepare(problem, sl.GaussianNoise(1.0), made(KNOWN[name]), models, Options(steps=2, paths=2))
    stream = Stream(jnp.zeros(2, jnp.uint32), jnp.zeros(1, jnp.uint32))

    def stepped(stepper):
        state = jax.tree.map(lambda a: a[:, None] if jnp.ndim(a) == 1 else a, stepper.init(stream))
        return stepper.step(jnp.asarray(0), state, stepper.evaluate(stepper.position(state))[1], stream)

    for model in models:
        stepper = experiment.steppers[model]
        after = jax.eval_shape(lambda stepper=stepper: stepper.position(stepped(stepper)))
        assert after.shape == (4, 1)


@pytest.mark.parametrize("name", tiered(RUNNING, KINDS))
def test_named_optimizers_run_on_a_quadratic(name):
    problem, noise = sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0), sl.GaussianNoise([1.0, 0.5, 1.0, 2.0])
    check(name, sl.compare(problem, noise, made(KNOWN[name]), steps=50, paths=320, record=sl.Record(every=5)))


def on_a_network(name):
    problem = sl.network("mlp", dataset="digits", subset=64, width=8, depth=1)
    execution = sl.Execution(devices=1 if name == "contrib.galore" else 2)
    options = dict(steps=30, paths=32, record=sl.Record(every=5), execution=execution)
    return sl.compare(problem, sl.MinibatchNoise(8), made(KNOWN[name]), **options)


@pytest.mark.parametrize("name", tiered(RUNNING, ["contrib.muon", "adafactor"]))
def test_named_optimizers_run_on_a_network(name, measured):
    row = check(name, on_a_network(name))
    if name in COARSE:
        measured("error of the empirical SDE", float(row.error), "finite: the first updates divide by 0")
    else:
        measured("99.99 % lower limit of the empirical SDE's error", float(row.error_lower), "< 0.01")


@pytest.mark.parametrize("name", ASK_FOR_MORE)
def test_those_that_ask_for_more_say_so(name):
    with pytest.raises(ValueError, match="further inputs"):
        sl.compare(sl.Quadratic([1.0]), sl.GaussianNoise(1.0), made(KNOWN[name]), steps=2, paths=2)


@pytest.mark.parametrize("name", OTHER_ARGUMENTS)
def test_those_that_take_other_arguments_say_so(name):
    with pytest.raises(TypeError, match="missing"):
        made(KNOWN[name])
