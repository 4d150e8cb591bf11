"""What is recorded beside the loss, and of the ends of paths, against the paths themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl

NOISE = sl.GaussianNoise(0.5)


def problem():
    data = (np.arange(6, dtype=np.float32)[:, None], np.arange(6, dtype=np.float32))
    return sl.Problem(
        lambda p, data: (data[0] @ p["w"] + p["b"] - data[1]) ** 2,
        {"w": np.ones(1, np.float32), "b": np.float32(2) * np.ones((), np.float32)},
        data,
        metrics={"near": lambda p, data: (jnp.abs(data[0] @ p["w"] + p["b"] - data[1]) < 1).astype(jnp.float32)},
    )


NAMES = ["norm", "grad_norm", "noise_trace", "near", "slope"]


@functools.cache
def compared():
    return sl.compare(
        problem(),
        NOISE,
        sl.SGD(0.02),
        ["optimizer", "sde"],
        steps=12,
        paths=24,
        record=sl.Record(
            every=5,
            keep_paths=24,
            observables=dict.fromkeys(NAMES) | {"slope": lambda p: p["w"][0]},
            marginals=[1],
        ),
    )


@pytest.fixture
def run():
    return compared()


@functools.cache
def expected():
    """Each observable of every path at every record, from the paths themselves: (path, step) by name."""
    subject, paths = problem(), compared().dataset.path_x.sel(model="sde").values  # (path, step, d)

    @jax.jit
    def values(x):
        gradient, near = subject.evaluate(x)[1], subject.metric("near", x)
        return gradient, near, subject.layout.unravel(x)["w"][0]

    gradient, near, slope = map(np.asarray, jax.jit(jax.vmap(jax.vmap(values)))(paths))
    norm, grad_norm = (np.linalg.norm(a, axis=-1) for a in (paths, gradient))
    trace = np.full(paths.shape[:2], 2 * 0.25)
    return {"norm": norm, "grad_norm": grad_norm, "noise_trace": trace, "near": near, "slope": slope}


@pytest.mark.parametrize("name", NAMES)
def test_observables_are_those_of_the_paths(run, name):
    values = expected()[name]
    here = run.dataset.sel(model="sde", observable=name)
    np.testing.assert_allclose(here.observable_mean, values.mean(axis=0), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(here.observable_std, values.std(axis=0, ddof=1), rtol=2e-3, atol=1e-5)
    groups = here.observable_group_mean.values
    np.testing.assert_allclose(groups, values, rtol=2e-5, atol=1e-6)  # 24 paths are 24 groups of one


def test_ends_are_those_of_the_paths(run):
    np.testing.assert_array_equal(run.dataset.law_x.values[:, 0, :, 0], run.dataset.path_x.values[:, :, -1, 1])


def test_an_observable_in_the_place_of_the_loss(run, tmp_path):
    slope = run.of("slope")
    np.testing.assert_array_equal(slope.dataset.loss_mean, run.dataset.observable_mean.sel(observable="slope"))
    assert np.isfinite(slope.errors().loc["sde", "error"])
    figure = slope.plot(tmp_path / "slope.png")
    assert figure.axes[0].get_ylabel() == "mean slope"
    assert "slope" in str(run)
    assert "W₁" in str(run)
    assert "W₁" in run._repr_html_()


def test_saved_and_loaded(run, tmp_path):
    run.save(tmp_path / "run.nc")
    again = sl.load(tmp_path / "run.nc")
    assert again.observables == run.observables
    assert again.laws(resamples=99).table.equals(run.laws(resamples=99).table)


def test_laws_of_one_model_and_of_another():
    subject, sizes = sl.Quadratic([1.0, 2.0, 3.0]), dict(steps=20, paths=400, record=sl.Record(every=20, marginals=3))
    models = {"optimizer": "optimizer", "sde": "sde", "fine": sl.ClosedForm("sde", substeps=4)}
    found = sl.compare(subject, NOISE, sl.SGD(0.1), models, **sizes)
    table = found.laws(resamples=2999).table
    assert table.loc[("sde", 20, "w1", "all")].p_value > 1e-3  # one law: below by chance once in a thousand seeds
    assert table.loc[("fine", 20, "w1", "all")].value < 1
    alone = sl.simulate(subject, NOISE, sl.SGD(0.1), "optimizer", **sizes)
    np.testing.assert_array_equal(alone.dataset.law_x.values[0], found.dataset.law_x.sel(model="optimizer").values)
    sizes |= dict(steps=40, record=sl.Record(every=40, marginals=3))
    far = sl.compare(subject, NOISE, sl.RMSpropW(0.02, b2=0.9), ["optimizer", "malladi2022"], **sizes)
    row = far.laws(quantities=["w1"], resamples=199).table.loc[("malladi2022", 40, "w1", "all")]
    assert row.value > 2 * row.floor
    assert row.lower > 0
    assert row.p_value < 0.01


@pytest.mark.parametrize(
    ("observables", "message"),
    [
        ("norm", "got the text 'norm'"),
        (["accuracy"], "observables: got 'accuracy'; choose one of 'norm'"),
        ({"norm": lambda p: 1.0}, "the name belongs to an observable"),
        ({"mine": 3}, "got int"),
        ({"mine": lambda p: p["x"]}, "fails at the start"),
        ({"mine": lambda p: 1.0 if p[0] > 0 else 0.0}, "cannot be compiled"),
        ({3: len}, "got 3, which is not a name"),
        (len, "give a list of names"),
        ({"mine": lambda p: 1j * p[0]}, "returned complex64"),
        ({"mine": lambda p: jnp.log(p[0] - 1)}, "is -inf at the start"),
        ({"mine": lambda p: jnp.ones(2)}, "returned float32 of shape"),
    ],
)
def test_observables_that_do_not_fit_are_refused(observables, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sl.compare(sl.Quadratic([1.0]), NOISE, sl.SGD(0.1), steps=1, paths=2, record=sl.Record(observables=observables))


@pytest.mark.parametrize(
    ("marginals", "message"),
    [(-1, "marginals: got -1"), ([0, 5], "marginals: got 5"), ([0, 0], "once"), (1.5, "marginals: got 1.5")],
)
def test_marginals_that_do_not_fit_are_refused(marginals, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sl.compare(
            sl.Quadratic([1.0, 2.0]), NOISE, sl.SGD(0.1), steps=1, paths=2, record=sl.Record(marginals=marginals)
        )


def test_infinite_noise_has_no_trace():
    with pytest.raises(ValueError, match="noise_trace"):
        sl.simulate(
            sl.Quadratic([1.0]),
            sl.StudentTNoise(1.0, 1),
            sl.SignSGD(0.1),
            steps=1,
            paths=2,
            record=sl.Record(observables=["noise_trace"]),
        )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_whose_paths_are_all_lost_can_be_printed():
    run = sl.compare(
        problem(),
        NOISE,
        sl.SGD(1e20),
        ["optimizer", "sde"],
        steps=6,
        paths=4,
        record=sl.Record(every=3, observables=["norm"], marginals=2, hits={"far": lambda p: p["b"] > 1e6}),
    )
    assert "diverged" in str(run)
    until = run.dataset.watched_until.values
    assert (until < 6).all()
    first = run.dataset.hit_step.values[:, 0]
    assert ((first <= until) | np.isnan(first)).all()
    assert "hit" in str(run.hitting_times())


def test_observables_and_losses_are_not_merged(run):
    other = sl.simulate(problem(), NOISE, sl.SGD(0.02), "second-order", steps=12, record=sl.Record(every=5))
    with pytest.raises(ValueError, match="other: differs in quantity"):
        run.of("norm").merge(other)


def test_what_was_not_recorded_is_refused():
    plain = sl.compare(sl.Quadratic([1.0]), NOISE, sl.SGD(0.1), ["optimizer", "sde"], steps=2, paths=8)
    with pytest.raises(ValueError, match="recorded none"):
        plain.of("norm")
    with pytest.raises(ValueError, match="laws: the run stored no values of every path"):
        plain.laws()
    with pytest.raises(ValueError, match="hits: the run counted no hitting times"):
        plain.hitting_times()
    with pytest.raises(ValueError, match="of: the run kept no paths"):
        plain.autocorrelation()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_in_another_precision(dtype):
    kwargs = dict(dataset="breast-cancer", subset=40, width=4, depth=2)
    full, low = sl.network("mlp", **kwargs), sl.network("mlp", gradient_dtype=dtype, **kwargs)
    x = full.start[:, None] + jnp.zeros((1, 2))
    index = jnp.arange(6)[:, None] + jnp.zeros((1, 2), jnp.int32)

    @jax.jit
    def both(x):
        return [(problem.evaluate(x), problem.batch_gradient(x, index)) for problem in (full, low)]

    ((loss, grad), batch), ((low_loss, low_grad), low_batch) = both(x)
    np.testing.assert_allclose(low_loss, loss, rtol=1e-6)
    assert low_grad.dtype == grad.dtype
    difference = float(jnp.linalg.norm(low_grad - grad) / jnp.linalg.norm(grad))
    assert 1e-5 < difference < (3e-2 if dtype == "bfloat16" else 5e-3)  # 8 and 11 bits of mantissa
    assert float(jnp.linalg.norm(low_batch - batch)) > 0
    assert sl.network(**low.describe()).describe() == low.describe()


def test_float64_needs_the_switch():
    with pytest.raises(ValueError, match="float64, which is disabled in JAX"):
        sl.network("mlp", dtype="float64")
    with pytest.raises(ValueError, match="float64, which is disabled in JAX"):
        sl.Problem(lambda p: jnp.sum(p**2), np.ones(2, np.float32), gradient_dtype="float64")
    with jax.enable_x64(True):
        wide = sl.network("mlp", subset=40, width=4, depth=2, dtype="float64")
        assert wide.start.dtype == jnp.float64
        assert wide.evaluate(wide.start)[1].dtype == jnp.float64
