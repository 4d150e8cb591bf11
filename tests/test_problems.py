"""Problems: values, gradients, layouts, and the two shapes of x."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl

RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(4, 4))
MATRIX = FACTOR @ FACTOR.T


def analytic():
    yield "diagonal", sl.Quadratic([1.0, 2.0, 3.0, 4.0]), lambda x: 0.5 * (np.arange(1, 5) * x**2).sum()
    yield "dense", sl.Quadratic(MATRIX), lambda x: 0.5 * x @ MATRIX @ x
    yield "wide", sl.Quadratic(np.ones(70)), lambda x: 0.5 * (x**2).sum()
    rosen = sl.Rosenbrock([0.1, 0.2, 0.3])
    yield "rosenbrock", rosen, lambda x: ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()
    saddle = sl.EmbeddedSaddle([-1.0, 2.0], lam=0.5, xi=0.3, start=0.1)
    yield (
        "embedded-saddle",
        saddle,
        lambda x: 0.5 * (np.array([-1, 2]) * x**2).sum() + 0.125 * (x**4).sum() - 0.1 * (x**3).sum(),
    )


@pytest.mark.parametrize(("problem", "formula"), [c[1:] for c in analytic()], ids=[c[0] for c in analytic()])
def test_value_and_gradient_of_one_path_and_of_many(problem, formula):
    with jax.enable_x64(True):
        problem = jax.tree.map(lambda a: np.asarray(a, np.float64), problem)
        x = RNG.normal(size=(problem.dim, 5))
        look = jax.jit(lambda p, x: (p.evaluate(x), p.loss(x), [p.evaluate(x[:, i]) for i in range(5)]))
        (loss, grad), alone, single = jax.device_get(look(problem, x))
        assert loss.shape == (5,)
        assert grad.shape == x.shape
        np.testing.assert_allclose(alone, loss, rtol=1e-12)
        for i in range(5):
            one = x[:, i]
            np.testing.assert_allclose(loss[i], formula(one), rtol=2e-6)  # λ and ξ were rounded to float32
            numeric = [(formula(one + h) - formula(one - h)) / 2e-5 for h in 1e-5 * np.eye(problem.dim)]
            np.testing.assert_allclose(grad[:, i], numeric, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(single[i][0], loss[i], rtol=1e-12)
            np.testing.assert_allclose(single[i][1], grad[:, i], rtol=1e-10, atol=1e-12)


def test_infimum_where_it_is_known():
    assert sl.Quadratic([1.0, 2.0]).infimum == 0
    assert sl.Quadratic([1.0, -2.0]).infimum is None
    assert sl.Rosenbrock().infimum == 0
    saddle = sl.EmbeddedSaddle([-1.0, 2.0], lam=1.0, xi=0.1)
    grid = np.linspace(-3, 3, 200_001)
    by_grid = sum((0.5 * h * grid**2 + 0.25 * grid**4 - 0.1 / 3 * grid**3).min() for h in (-1.0, 2.0))
    assert saddle.infimum == pytest.approx(by_grid, abs=1e-8)
    assert sl.EmbeddedSaddle(MATRIX, start=0.1).infimum is None


def test_a_user_problem_keeps_static_leaves_and_the_structure():
    class Net(eqx.Module):
        weight: jax.Array
        activation: object
        name: str

        def __call__(self, x):
            return self.activation(self.weight @ x)

    net = Net(np.ones((2, 3), np.float32), jnp.tanh, "net")
    problem = sl.Problem(lambda p: jnp.sum(p["net"](jnp.ones(3)) ** 2) + p["b"] ** 2, {"net": net, "b": np.float32(2)})
    assert problem.dim == 7
    back = problem.layout.unravel(problem.start)
    assert back["net"].activation is jnp.tanh
    np.testing.assert_allclose(jax.jit(lambda: problem.loss(problem.start))(), 2 * np.tanh(3) ** 2 + 4, rtol=1e-6)
    np.testing.assert_array_equal(problem.layout.ravel(back), problem.start)


def test_data_give_the_mean_of_per_example_losses():
    data = (np.arange(6.0).reshape(3, 2), np.array([0, 1, 2]))
    problem = sl.Problem(lambda w, d: (d[0] @ w - d[1]) ** 2, np.ones(2, np.float32), data)
    look = jax.jit(lambda x: (problem.loss(x), jax.grad(problem.loss)(x), problem.evaluate(jnp.stack([x, 2 * x], 1))))
    loss, grad, (many, grads) = jax.device_get(look(problem.start))
    np.testing.assert_allclose(loss, np.mean((data[0].sum(axis=1) - data[1]) ** 2))
    assert many.shape == (2,)
    np.testing.assert_allclose(grads[:, 0], grad, rtol=1e-5)


def test_the_network_is_the_papers():
    problem = sl.network("mlp", dataset="breast-cancer")
    assert problem.dim == 30 * 20 + 20 + 9 * (20 * 20 + 20) + 20 + 1
    model = problem.layout.unravel(problem.start)
    assert len(model.weights) == 11
    assert not any(np.asarray(b).any() for b in model.biases)
    features, labels = (np.asarray(a) for a in problem.data)
    assert features.shape == (569, 30)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-5)
    logits, loss = jax.jit(lambda x: (problem.layout.unravel(x)(features.T)[0], problem.loss(x)))(problem.start)
    probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    entropy = -np.mean(np.where(labels == 1, np.log(probability), np.log1p(-probability)))
    np.testing.assert_allclose(loss, entropy, rtol=1e-5)


def test_he_initialisation_has_variance_two_over_fan_in_and_follows_the_seed():
    weights = np.asarray(sl.MLP.initialise((300, 400, 1), seed=3).weights[0])
    # 120 000 normals: the sample variance has a relative standard error of sqrt(2/120000) = 0.4 %; 5 of them
    assert float(weights.var()) == pytest.approx(2 / 300, rel=0.02)
    again, other = (np.asarray(sl.MLP.initialise((300, 400, 1), seed=s).weights[0]) for s in (3, 4))
    assert (weights == again).all()
    assert not (weights == other).any()


def test_metrics_are_means_beside_the_loss():
    data = (np.arange(6.0).reshape(3, 2), np.array([0, 1, 2]))
    metrics = {"error": lambda w, d: jnp.abs(d[0] @ w - d[1]), "large": lambda w, d: d[0] @ w > 2}
    problem = sl.Problem(lambda w, d: (d[0] @ w - d[1]) ** 2, jnp.ones(2), data, metrics=metrics)
    assert problem.metrics == ("error", "large")
    assert float(problem.metric("error", problem.start)) == pytest.approx((1 + 4 + 7) / 3)
    many = problem.with_l2(0.5).metric("large", jnp.stack([problem.start, 0 * problem.start], axis=1))
    np.testing.assert_allclose(many, [2 / 3, 0], rtol=1e-6)
    plain = sl.Problem(lambda p: jnp.sum(p**2), jnp.ones(3), metrics={"largest": jnp.max})
    assert float(plain.metric("largest", plain.start)) == 1


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (
            {"mean": lambda w, d: jnp.mean(d @ w)},
            ValueError,
            r"metrics\['mean'\]: returned shape \(\); return the same shape as the loss",
        ),
        ({"one": lambda w: w}, TypeError, r"metrics\['one'\]: the call function\(params, data\) fails"),
        ({"text": lambda w, d: "high"}, TypeError, r"metrics\['text'\]: .* returns a real JAX array"),
        ({"complex": lambda w, d: d @ w + 1j}, TypeError, r"metrics\['complex'\]: returned complex64"),
        ({"number": 1.0}, TypeError, "metrics: got 'number': 1.0; give a dictionary"),
        ([jnp.max], TypeError, "metrics: got list; give a dictionary"),
    ],
)
def test_metrics_that_are_none(metrics, error, message):
    with pytest.raises(error, match=message):
        sl.Problem(lambda w, d: (d @ w) ** 2, jnp.ones(2), np.ones((3, 2)), metrics=metrics)


def test_a_metric_that_is_not_there():
    problem = sl.Problem(jnp.sum, jnp.ones(3), metrics={"largest": jnp.max})
    with pytest.raises(ValueError, match=r"metric: got 'larges'; choose one of 'largest'. Did you mean"):
        problem.metric("larges", problem.start)
    with pytest.raises(ValueError, match="metric: got 'accuracy', but this problem has no such metric"):
        sl.Quadratic([1.0]).metric("accuracy", jnp.ones(1))
