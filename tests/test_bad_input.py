"""Every bad input is refused before anything runs, with the argument, the value and the remedy."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.scipy.stats import logistic, norm

import sdelens as sl

NAN, INF = float("nan"), float("inf")
PROBLEM, NOISE, OPTIMIZER = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.AdamW(0.1)
COUNTER = itertools.count()


def compare(problem=PROBLEM, noise=NOISE, optimizer=OPTIMIZER, models=None, **options):
    return sl.compare(problem, noise, optimizer, models, **({"steps": 2, "paths": 4} | options))


def two_leaves():
    return sl.Problem(lambda p: (p["a"] ** 2).sum() + (p["b"] ** 2).sum(), {"a": jnp.ones(2), "b": jnp.ones((2, 3))})


CASES = {
    # numbers of the optimizer
    "lr zero": (lambda: sl.SGD(0.0), "lr: got 0.0; it must be greater than 0"),
    "lr negative": (lambda: sl.AdamW(-1e-3), "lr: got -0.001"),
    "lr nan": (lambda: sl.SignSGD(NAN), "lr: got nan; give a finite number"),
    "lr infinite": (lambda: sl.RMSpropW(INF), "lr: got inf"),
    "lr text": (lambda: sl.SGD("0.1"), "lr: got '0.1' (str); give a real number"),
    "lr none": (lambda: sl.SGD(None), "lr: got None"),
    "lr bool": (lambda: sl.SGD(True), "lr: got True"),
    "lr array": (lambda: sl.SGD(np.ones(2)), "lr: got array"),
    "lr key": (lambda: sl.SGD(jax.random.key(0)), "lr: got a random key (key<fry>); give a real number"),
    "seed key": (
        lambda: compare(seed=jax.random.key(0)),
        "seed: got a random key (key<fry>); give a whole number, such as 0",
    ),
    "scale key": (lambda: sl.GaussianNoise(jax.random.key(0)), "scale: got a random key"),
    "lr complex": (lambda: sl.SGD(1j), "lr: got 1j"),
    "lr tiny": (lambda: sl.SGD(1e-60), "lr: got 1e-60, which float32 cannot represent"),
    "lr complex array": (lambda: sl.SGD(np.array(1j)), "give a real number"),
    "b1 one": (lambda: sl.AdamW(0.1, b1=1.0), "b1: got 1.0; it must lie in [0, 1)"),
    "b2 negative": (lambda: sl.AdamW(0.1, b2=-0.1), "b2: got -0.1"),
    "b2 large": (lambda: sl.RMSpropW(0.1, b2=1.5), "b2: got 1.5"),
    "eps negative": (lambda: sl.AdamW(0.1, eps=-1e-8), "eps: got -1e-08; it must be 0 or greater"),
    "decay negative": (lambda: sl.SGD(0.1, weight_decay=-1), "weight_decay: got -1.0"),
    "decay kind": (lambda: sl.SGD(0.1, decay="l2"), "decay: got 'l2'; choose one of 'coupled', 'independent'"),
    "v0": (lambda: sl.RMSpropW(0.1, v0="one"), "v0: got 'one'; choose one of 'second-moment', 'zero'"),
    "schedule": (lambda: sl.SGD(0.1, schedule=0.5), "schedule: got 0.5; give a function"),
    "schedule above one": (
        lambda: compare(optimizer=sl.SGD(0.1, schedule=lambda k: 0.4 * k), steps=9),
        "schedule: got the value 1.2",
    ),
    "schedule in python": (
        lambda: sl.SGD(0.1, schedule=lambda k: 1.0 if k < 3 else 0.5),
        "schedule: its Python code branches on the value of the step",
    ),
    # noise
    "scale zero": (
        lambda: sl.GaussianNoise(0.0),
        "scale: got 0 only; the standard deviation must be greater than 0 in at least one coordinate",
    ),
    "scale negative": (lambda: sl.GaussianNoise([1.0, -2.0]), "got -2.0"),
    "scale nan": (lambda: sl.GaussianNoise(np.array([1.0, NAN])), "scale: entry (1,) is nan"),
    "scale leaf": (lambda: sl.GaussianNoise({"a": 1.0, "b": -np.ones(2)}), "scale['b']: got -1.0"),
    "scale text": (lambda: sl.GaussianNoise("big"), "scale: got 'big'"),
    "scale shape": (
        lambda: compare(noise=sl.GaussianNoise([1.0, 1.0, 1.0])),
        "scale: got shape (3,); the problem has 2",
    ),
    "scale leaf shape": (
        lambda: compare(two_leaves(), sl.GaussianNoise({"a": np.ones(2), "b": np.ones(4)})),
        "scale: leaf ['b'] has shape (4,), but the parameter has shape (2, 3)",
    ),
    "scale structure": (
        lambda: compare(two_leaves(), sl.GaussianNoise({"a": 1.0})),
        "scale: got a pytree whose structure differs",
    ),
    "scale vector": (lambda: compare(two_leaves(), sl.GaussianNoise([1.0, 2.0])), "the problem has 8 coordinates"),
    "scale and covariance": (
        lambda: sl.GaussianNoise(1.0, covariance=np.eye(2)),
        "scale: got a scale and a covariance",
    ),
    "no scale": (sl.GaussianNoise, "scale: is missing; give the standard deviation, or covariance=..."),
    "t scale none": (lambda: sl.StudentTNoise(None, 3), "scale: got None; give real numbers"),
    "covariance asymmetric": (
        lambda: sl.GaussianNoise(covariance=[[1.0, 0.5], [0.2, 1.0]]),
        "covariance: is not symmetric (largest difference 0.3); use (C + C.T) / 2",
    ),
    "covariance diagonal": (
        lambda: sl.GaussianNoise(covariance=[[1.0, 0.0], [0.0, -1.0]]),
        "covariance: its diagonal is -1 at entry 1",
    ),
    "covariance indefinite": (
        lambda: sl.GaussianNoise(covariance=[[1.0, 2.0], [2.0, 1.0]]),
        "covariance: is not positive semi-definite (lowest eigenvalue -1)",
    ),
    "covariance not square": (
        lambda: sl.GaussianNoise(covariance=np.ones((2, 3))),
        "covariance: got shape (2, 3); a covariance matrix is square",
    ),
    "covariance vector": (lambda: sl.GaussianNoise(covariance=[1.0, 2.0]), "covariance: got an array of shape (2,)"),
    "covariance nan": (
        lambda: sl.GaussianNoise(covariance=[[1.0, NAN], [NAN, 1.0]]),
        "covariance: entry (0, 1) is nan",
    ),
    "covariance large": (lambda: sl.GaussianNoise(covariance=np.eye(2001)), "matrices may have up to 2000"),
    "covariance size": (
        lambda: compare(noise=sl.GaussianNoise(covariance=np.eye(3))),
        "covariance: got shape (3, 3); the problem has 2 coordinates, so give (2, 2)",
    ),
    "covariance function size": (
        lambda: compare(noise=sl.GaussianNoise(covariance=lambda x: jnp.eye(3))),
        "covariance: returned shape (3, 3); return (2, 2), or variances of shape (2,) or ()",
    ),
    "covariance function negative": (
        lambda: compare(noise=sl.GaussianNoise(covariance=lambda x: x - 5)),
        "covariance at the start: got -4.0; a variance must not be negative",
    ),
    "covariance function indefinite": (
        lambda: compare(noise=sl.GaussianNoise(covariance=lambda x: jnp.array([[1.0, 2.0], [2.0, 1.0]]))),
        "covariance at the start: is not positive semi-definite",
    ),
    "covariance function of numpy": (
        lambda: compare(noise=sl.GaussianNoise(covariance=lambda x: np.diag(np.asarray(x)))),
        "covariance: cannot be compiled as a function of the parameters",
    ),
    "covariance of another pytree": (
        lambda: compare(two_leaves(), sl.GaussianNoise(covariance=lambda p: jnp.ones(3))),
        "covariance: returned shape (3,); return (8, 8), or variances of shape (8,) or ()",
    ),
    "df zero": (lambda: sl.StudentTNoise(1.0, 0), "df: got 0; give 0.2 or more"),
    "df small": (
        lambda: sl.StudentTNoise(1.0, 0.1),
        "df: got 0.1; give 0.2 or more (below that, draws exceed what float32 can hold)",
    ),
    "df nan": (lambda: sl.StudentTNoise(1.0, NAN), "df: got nan"),
    "t scale": (lambda: sl.StudentTNoise(-1.0, 3), "scale: got -1.0; the scale must not be negative"),
    "laplace scale": (lambda: sl.LaplaceNoise(np.array([1.0, -1.0])), "scale: got -1.0"),
    "half-width": (lambda: sl.UniformNoise(0.0), "scale: got 0 only; the half-width must be greater than 0"),
    "t leaf": (
        lambda: compare(two_leaves(), sl.StudentTNoise({"a": 1.0, "b": np.ones(4)}, 3)),
        "scale: leaf ['b'] has shape (4,)",
    ),
    "cdf shifted": (
        lambda: sl.SymmetricNoise(lambda s: logistic.cdf(s - 1), logistic.ppf, variance=3.3),
        "cdf: is not that of a law symmetric about 0: F(0) + F(-0) is",
    ),
    "cdf one-sided": (
        lambda: sl.SymmetricNoise(lambda s: jnp.where(s > 0, 1 - jnp.exp(-s), 0.0), logistic.ppf, variance=1.0),
        "cdf: is not that of a law symmetric about 0",
    ),
    "cdf falling": (
        lambda: sl.SymmetricNoise(lambda s: logistic.cdf(-s), logistic.ppf, variance=3.3),
        "cdf: does not rise from ½ at 0 towards 1",
    ),
    "cdf flat": (
        lambda: sl.SymmetricNoise(lambda s: 0.5 + 0 * s, logistic.ppf, variance=3.3),
        "cdf: does not rise from ½ at 0 towards 1",
    ),
    "cdf of SciPy": (
        lambda: sl.SymmetricNoise(scipy.stats.logistic.cdf, logistic.ppf, variance=3.3),
        "cdf: cannot be compiled",
    ),
    "cdf a number": (lambda: sl.SymmetricNoise(0.5, logistic.ppf, variance=3.3), "cdf: got 0.5; give a function"),
    "cdf of all": (
        lambda: sl.SymmetricNoise(jnp.sum, logistic.ppf, variance=3.3),
        "cdf: is not element-wise",
    ),
    "ppf of another": (
        lambda: sl.SymmetricNoise(logistic.cdf, norm.ppf, variance=3.3),
        "ppf: is not the inverse of cdf",
    ),
    "pdf of another": (
        lambda: sl.SymmetricNoise(logistic.cdf, logistic.ppf, variance=3.3, pdf=norm.pdf),
        "pdf: is not the derivative of cdf: at 0.3 it is 0.3814, where that is 0.2445",
    ),
    "covariance of other leaves": (
        lambda: compare(two_leaves(), sl.GaussianNoise(covariance=lambda p: {"a": p["a"], "c": 1.0})),
        "covariance: returned a pytree that is not like the parameters",
    ),
    "variance of another": (
        lambda: sl.SymmetricNoise(logistic.cdf, logistic.ppf, variance=1.0),
        "variance: got 1, but all but the outermost 1/8000 of the law alone has",
    ),
    "sum of one": (lambda: sl.SumNoise([NOISE]), "terms: got 1; a sum needs two or more noises"),
    "sum of numbers": (lambda: sl.SumNoise([NOISE, 1.0]), "terms: got float; give noises"),
    "ratio": (lambda: NOISE.at_batch_ratio(0), "ratio: got 0.0; it must be greater than 0"),
    "ratio of a law": (
        lambda: sl.LaplaceNoise(1.0).at_batch_ratio(4),
        "ratio: got 4, but the average of several draws",
    ),
    # learning rates
    "other lr": (
        lambda: sl.AdamW(0.01, 0.9, 0.99).at_lr(0.2),
        "lr: got 0.2, which makes b1 = -1 negative, because (1 - b1)/lr = 10 is kept fixed; give an lr of at most 0.1",
    ),
    # the run
    "steps zero": (lambda: compare(steps=0), "steps: got 0; it must be 1 or more"),
    "steps half": (lambda: compare(steps=1.5), "steps: got 1.5; give a whole number"),
    "steps text": (lambda: compare(steps="10"), "steps: got '10'"),
    "paths zero": (lambda: compare(paths=0), "paths: got 0"),
    "paths negative": (lambda: compare(paths=-3), "paths: got -3"),
    "paths many": (lambda: compare(paths=2**31), "paths: got 2147483648"),
    "record every": (lambda: sl.Record(every=0), "every: got 0; it must be 1 or more"),
    "keep_paths": (lambda: sl.Record(keep_paths=-1), "keep_paths: got -1"),
    "record kind": (lambda: compare(record=3), "record: got 3; give sl.Record(...) or None."),
    "chunk": (lambda: sl.Execution(chunk=0), "chunk: got 0"),
    "checkpoint empty": (lambda: sl.Execution(checkpoint=""), "checkpoint: got '', which is not the name of a folder"),
    "parameter_shards": (lambda: sl.Execution(parameter_shards=0), "parameter_shards: got 0; it must be 1 or more"),
    "execution kind": (
        lambda: compare(execution={"chunk": 2}),
        "execution: got {'chunk': 2}; give sl.Execution(...) or None.",
    ),
    "seed": (lambda: compare(seed=-1), "seed: got -1"),
    "seed large": (lambda: compare(seed=2**64), "seed: got 18446744073709551616"),
    "devices": (lambda: compare(execution=sl.Execution(devices=[])), "devices: got (); give a number"),
    "devices many": (
        lambda: compare(execution=sl.Execution(devices=99)),
        "devices: got 99, but JAX finds only 2 (cpu)",
    ),
    "devices text": (lambda: compare(execution=sl.Execution(devices="cpu")), "devices: got 'cpu'"),
    "devices twice": (
        lambda: compare(execution=sl.Execution(devices=jax.devices()[:1] * 2)),
        "distinct devices from jax.local_devices()",
    ),
    "steps many": (lambda: compare(steps=2**31), "steps: got 2147483648; it must be less"),
    # models
    "increments": (
        lambda: sl.ClosedForm("sde", increments="poisson"),
        "increments: got 'poisson'; choose one of 'gaussian'",
    ),
    "substeps": (lambda: sl.ClosedForm("sde", substeps=0), "substeps: got 0"),
    "integrator": (
        lambda: sl.ClosedForm("sde", integrator="heun"),
        "integrator: got 'heun'; choose one of 'sequential', 'euler'",
    ),
    "bias correction": (lambda: sl.ClosedForm("sde", bias_correction="none"), "bias_correction: got 'none'"),
    "bias correction of another": (
        lambda: compare(optimizer=sl.SGD(0.1), models=[sl.ClosedForm("sde", bias_correction="discrete")]),
        "bias_correction: got 'discrete', but sgd has no bias correction; leave it out (it applies to the SDEs of",
    ),
    "sde kind": (lambda: sl.ClosedForm(3), "sde: got 3; give a name, or a function that returns an sl.SDE."),
    "empirical samples": (lambda: sl.Empirical(samples=1), "samples: got 1; it must be 2 or more"),
    "empirical substeps": (lambda: sl.Empirical(substeps=0), "substeps: got 0"),
    "empirical increments": (lambda: sl.Empirical(increments="poisson"), "increments: got 'poisson'"),
    "model": (lambda: compare(models=["optimiser"]), "Did you mean 'optimizer'?"),
    "model of another": (
        lambda: compare(optimizer=sl.SGD(0.1), models=["optimizer", "malladi2022"]),
        "models: got 'malladi2022', which does not exist for sgd; choose from optimizer, sde",
    ),
    "models twice": (lambda: compare(models=["sde", "sde"]), "models: got ['sde', 'sde']; give each model once"),
    "models text": (
        lambda: compare(models="sde"),
        "models: got 'sde', which is not a list; give a list, for example ['optimizer', 'sde'].",
    ),
    "models empty": (lambda: compare(models=[]), "models: got no models"),
    "closed form of the empirical": (lambda: sl.ClosedForm("empirical"), "an SDE in closed form; use sl.Empirical()"),
    "closed form of the optimizer": (lambda: sl.ClosedForm("optimizer"), "name it in the list of models"),
    "models object alone": (
        lambda: compare(models=sl.Empirical()),
        "models: got sl.Empirical(...), which is not a list; give a list, for example ['optimizer', ",
    ),
    "models objects twice": (
        lambda: compare(models=[sl.ClosedForm("sde", substeps=2), sl.ClosedForm("sde", substeps=2)]),
        "models: got ['sde, 2 substeps', 'sde, 2 substeps']; give each model once, or give labels: {'mine': sl.",
    ),
    "models misspelt option": (
        lambda: compare(models=[sl.ClosedForm("sde", integrater="euler")]),
        "unexpected keyword argument 'integrater'",
    ),
    "models options as a mapping": (
        lambda: compare(models={"a": {"integrator": "euler"}}),
        "models['a']: got {'integrator': 'euler'}; give a name, or an object such as sl.ClosedForm('sde', substeps=8)",
    ),
    "models option kind": (lambda: compare(models={"a": 3}), "models['a']: got 3; give a name, or an object such as"),
    "models class": (
        lambda: compare(models=["optimizer", sl.ClosedForm]),
        "models: got the class ClosedForm itself; call it with its options.",
    ),
    "problem kind": (lambda: compare(problem=lambda x: x), "problem: got function; give one of"),
    "noise kind": (lambda: compare(noise=1.0), "noise: got float"),
    "optimizer kind": (lambda: compare(optimizer="adamw"), "optimizer: got str"),
    # names
    "network": (
        lambda: sl.network("mpl"),
        "name: got 'mpl'; choose one of 'mlp', 'cnn', 'resnet', 'vit', 'transformer'. Did you mean 'mlp'?",
    ),
    "dataset": (lambda: sl.network("mlp", dataset="brest-cancer"), "Did you mean 'breast-cancer'?"),
    "width": (lambda: sl.network("mlp", width=0), "width: got 0"),
    # problems
    "curvature nan": (lambda: sl.Quadratic([1.0, NAN]), "curvature: entry (1,) is nan"),
    "curvature infinite": (lambda: sl.Quadratic(INF), "curvature: entry () is inf"),
    "curvature asymmetric": (lambda: sl.Quadratic([[1.0, 2.0], [0.0, 1.0]]), "got a matrix that is not symmetric"),
    "curvature not square": (
        lambda: sl.Quadratic(np.ones((2, 3))),
        "curvature: got shape (2, 3); give a square matrix",
    ),
    "curvature cube": (lambda: sl.Quadratic(np.ones((2, 2, 2))), "it must have 0 or 1 or 2 axes"),
    "curvature empty": (lambda: sl.Quadratic([]), "curvature: got an empty array"),
    "curvature text": (lambda: sl.Quadratic("steep"), "curvature: got 'steep'; give real numbers"),
    "curvature digits": (lambda: sl.Quadratic(["1", "2"]), "curvature: got ['1', '2']; give real numbers"),
    "curvature complex": (lambda: sl.Quadratic([1j]), "give real numbers"),
    "curvature none": (lambda: sl.Quadratic(None), "curvature: got None; give real numbers"),
    "curvature ragged": (lambda: sl.Quadratic([[1.0], [1.0, 2.0]]), "curvature: got rows of different lengths"),
    "curvature huge": (lambda: sl.Quadratic([1e60, 1.0]), "which float32 cannot represent"),
    "start shape": (lambda: sl.Quadratic([1.0, 2.0], start=[1.0]), "start: got shape (1,), but curvature has 2"),
    "start nan": (lambda: sl.Rosenbrock([NAN, 1.0]), "start: entry (0,) is nan"),
    "rosenbrock one": (lambda: sl.Rosenbrock([1.0]), "start: got 1 coordinate"),
    "lam": (lambda: sl.EmbeddedSaddle(lam=0.0), "lam: got 0.0"),
    "loss vector": (
        lambda: sl.Problem(lambda p: p**2, jnp.ones(2)),
        "loss: returned shape (2,) at the start; return a scalar",
    ),
    "loss random": (
        lambda: sl.Problem(lambda p: p.sum() * next(COUNTER), jnp.ones(2)),
        "loss: two calls at the start return different values, so it is random",
    ),
    "loss nan": (lambda: sl.Problem(lambda p: jnp.log(p).sum(), -jnp.ones(2)), "loss: is nan at the start"),
    "loss integer": (lambda: sl.Problem(lambda p: jnp.int32(1), jnp.ones(2)), "loss: returned int32"),
    "loss text": (lambda: sl.Problem(lambda p: "small", jnp.ones(2)), "loss: returned str"),
    "loss in numpy": (
        lambda: sl.Problem(lambda p: jnp.sum(p) * float(np.asarray(p)[0]), jnp.ones(2)),
        "loss: cannot be compiled",
    ),
    "loss with if": (
        lambda: sl.Problem(lambda p: p.sum() if p[0] > 0 else -p.sum(), jnp.ones(2)),
        "loss: cannot be compiled",
    ),
    "loss gradient": (
        lambda: sl.Problem(lambda p: jnp.sqrt(jnp.sum(p**2)), jnp.zeros(2)),
        "loss: its gradient is not finite at the start",
    ),
    "infimum above": (
        lambda: sl.Problem(lambda p: p.sum(), jnp.ones(2), infimum=9),
        "infimum: got 9.0, which is above the loss 2",
    ),
    "infimum nan": (lambda: sl.Problem(lambda p: p.sum(), jnp.ones(2), infimum=NAN), "infimum: got nan"),
    "infimum text": (lambda: sl.Problem(lambda p: p.sum(), jnp.ones(2), infimum="0"), "infimum: got '0'"),
    "loss arguments": (
        lambda: sl.Problem(lambda p: p.sum(), jnp.ones(2), np.ones(3)),
        "loss: the call loss(params, data) fails",
    ),
    "optimizer class": (lambda: compare(optimizer=sl.SGD), "optimizer: got the class SGD itself"),
    "data text": (lambda: sl.Problem(lambda p, d: p, jnp.ones(2), {"a": "abc"}), "data: "),
    "loss not callable": (lambda: sl.Problem(1.0, jnp.ones(2)), "loss: got 1.0; give a function"),
    "loss per example": (
        lambda: sl.Problem(lambda p, d: (d @ p).mean(), jnp.ones(2), np.ones((5, 2))),
        "loss: returned shape () for 5 examples; return one loss for each example, with shape (5,)",
    ),
    "data sizes": (
        lambda: sl.Problem(lambda p, d: d[0] @ p, jnp.ones(2), (np.ones((5, 2)), np.ones(4))),
        "data: leaves have first axes [4, 5]",
    ),
    "start integers": (
        lambda: sl.Problem(lambda p: p["a"].sum() * 1.0, {"a": jnp.arange(2)}),
        "start['a']: got an array of int32; parameters must be floating arrays. Cast it",
    ),
    "start key": (
        lambda: sl.Problem(lambda p: p["w"].sum(), {"w": jnp.ones(2), "key": jax.random.key(0)}),
        "start['key']: got a random key",
    ),
    "start old key": (
        lambda: sl.Problem(lambda p: p["w"].sum(), {"w": jnp.ones(2), "key": jax.random.PRNGKey(0)}),
        "start['key']: got an array of uint32",
    ),
    "start without arrays": (lambda: sl.Problem(lambda p: 1.0, {"a": "text"}), "start: has no floating array"),
    "start infinite": (
        lambda: sl.Problem(lambda p: p.sum(), jnp.array([INF])),
        "start: has entries that are not finite",
    ),
}


@pytest.mark.parametrize(("action", "message"), CASES.values(), ids=CASES.keys())
def test_refused_with_the_argument_the_value_and_the_remedy(action, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        action()


@pytest.mark.parametrize(
    "number", [1, 0.5, np.float32(0.5), np.int64(1), np.array(0.5), jnp.array(0.5), jnp.bfloat16(0.5)], ids=repr
)
def test_numbers_of_every_kind_are_taken(number):
    assert isinstance(sl.SGD(number).lr, float)


@pytest.mark.parametrize("count", [3, np.int64(3), 3.0, jnp.array(3)], ids=repr)
def test_whole_numbers_of_every_kind_are_taken(count):
    assert compare(models=["optimizer"], steps=count).dataset.sizes["step"] == 4


def test_estimate_refuses_what_compare_refuses():
    with pytest.raises(ValueError, match="steps: got 0"):
        sl.estimate(PROBLEM, NOISE, OPTIMIZER, steps=0)
    with pytest.raises(TypeError, match="record: got 2; give"):
        sl.estimate(PROBLEM, NOISE, OPTIMIZER, steps=1, record=2)


@pytest.mark.parametrize("function", [sl.compare, sl.simulate, sl.estimate, partial(sl.sweep, over={"lr": [0.1]})])
def test_options_that_there_are_not_and_steps_left_out_are_named(function):
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        function(PROBLEM, NOISE, OPTIMIZER, stepz=1)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'steps'"):
        function(PROBLEM, NOISE, OPTIMIZER, paths=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'progress'"):
        function(PROBLEM, NOISE, OPTIMIZER, steps=1, progress=True)


def run(problem):
    """One program, by which a loss is compared with what it was."""
    return compare(problem, optimizer=sl.SGD(0.1), models=["optimizer"], steps=5)


def test_a_loss_that_cancels_to_nothing_at_the_start_is_not_taken_for_a_changed_one():
    """The compiled and the plain loss differ by rounding, here in everything that is left of them."""
    start = jnp.full(7, 0.3)
    height = float(jnp.sum(jnp.exp(start)) / 3)
    run(sl.Problem(lambda p: jnp.sum(jnp.exp(p)) / 3 - height + 1e-9 * p[0], start))


def test_a_loss_changed_after_a_run_is_noticed():
    class Factors:
        """Attributes that a function reads by a name in a variable are not among those that are followed."""

    held, name = Factors(), "own"
    held.own = 1.0

    def loss(p):
        return getattr(held, name) * jnp.sum(p**2)

    run(sl.Problem(loss, jnp.ones(2)))
    held.own = 5.0
    with pytest.raises(ValueError, match="loss: is 10 at the start now, but 2 in the compiled run"):
        run(sl.Problem(loss, jnp.ones(2)))
