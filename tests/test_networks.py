"""Networks: sizes, values against references, causality, precision, and what is refused."""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import sdelens as sl
from sdelens.core.names import problem_label
from sdelens.problems.networks._attention import Block
from sdelens.problems.networks._losses import accuracy, cross_entropy

TINY = {
    "mlp": dict(dataset="digits", width=5, depth=2),
    "cnn": dict(channels=4, dense=6),
    "resnet": dict(channels=4, blocks=2, dense=6),
    "vit": dict(patch=4, width=4, depth=1, heads=2, mlp=6),
    "transformer": dict(context=6, width=4, depth=1, heads=2, mlp=6),
}
VOCABULARY = len(sl.load_text().vocabulary)
BLOCK = 4 * (4 * 4) + 2 * (4 * 6) + 9 * 4 + 6  # 4w² + 2wm + 9w + m
DIMS = {
    "mlp": 65 * 5 + 6 * 5 + 6 * 10,
    "cnn": 10 * 4 + 37 * 4 + (2 * 2 * 4 + 1) * 6 + 7 * 10,
    "resnet": 10 * 4 + 2 * 37 * 4 + (4 * 4 * 4 + 1) * 6 + 7 * 10,
    "vit": 17 * 4 + 4 * 4 + BLOCK + 2 * 4 + 5 * 10,
    "transformer": VOCABULARY * 4 + 6 * 4 + BLOCK + 2 * 4 + 5 * VOCABULARY,
}
PROBLEMS = {name: sl.network(name, subset=12, data_seed=1, seed=3, **options) for name, options in TINY.items()}
LOGITS = eqx.filter_jit(lambda model, features: model.logits(features))


def model_of(problem):
    return problem.layout.unravel(problem.start)


@functools.cache
def seen(name):
    """What the network says of itself at its start, and at half of it: one program."""
    problem = PROBLEMS[name]

    @jax.jit
    def look(two, data):
        model = problem.layout.unravel(two[:, 0])

        def one(model, example):
            return cross_entropy(model, jax.tree.map(lambda a: a[None], example))[0]

        alone, grads = jax.vmap(jax.value_and_grad(one), (None, 0))(model, data)
        losses, gradient = problem.evaluate(two)
        return {
            "losses": losses,
            "gradient": gradient,
            "together": cross_entropy(model, data),
            "alone": alone,
            "mean of gradients": problem.layout.ravel(jax.tree.map(lambda g: g.mean(axis=0), grads)),
            "logits": model.logits(data[0]),
            "hits": accuracy(model, data),
            "loss": problem.loss(two[:, 0]),
            "accuracy": problem.metric("accuracy", jnp.stack([two[:, 0]] * 2, axis=1)),
        }

    start = np.asarray(problem.start)
    return {what: np.asarray(a) for what, a in look(np.stack([start, 0.5 * start], axis=1), problem.data).items()}


def conv(x, layer):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, layer.weight, (1, 1), "SAME", dimension_numbers=numbers) + layer.bias


def pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@pytest.mark.parametrize("name", TINY)
def test_sizes_data_and_finite_gradients(name):
    problem = PROBLEMS[name]
    assert problem.dim == DIMS[name]
    features, labels = problem.data
    assert len(features) == len(labels) == 12
    if name != "transformer":
        assert features.dtype == np.float32
        np.testing.assert_allclose([features.mean(), features.std()], [0, 1], atol=1e-5)
        assert np.bincount(labels).tolist().count(1) == 8  # twelve of ten classes
    many, grads = seen(name)["losses"], seen(name)["gradient"]
    assert many.shape == (2,)
    assert np.isfinite(grads).all()
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(problem.layout.unravel(grads[:, 0])))


@pytest.mark.parametrize("name", TINY)
def test_an_example_s_loss_and_gradient_do_not_depend_on_the_others(name):
    found = seen(name)
    assert found["together"].shape == (12,)
    np.testing.assert_allclose(found["alone"], found["together"], rtol=2e-5)
    np.testing.assert_allclose(found["mean of gradients"], found["gradient"][:, 0], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("name", TINY)
def test_loss_and_accuracy_follow_from_the_logits(name):
    problem = PROBLEMS[name]
    labels = np.asarray(problem.data[1])
    found = seen(name)
    logits = found["logits"].astype(np.float64)
    probability = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    shape = labels.shape
    losses, hits = np.empty(shape), np.empty(shape)
    for place in np.ndindex(shape):
        losses[place] = -np.log(probability[(*place, labels[place])])
        hits[place] = probability[place].argmax() == labels[place]
    np.testing.assert_allclose(found["together"], losses.reshape(12, -1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(found["hits"], hits.reshape(12, -1).mean(1), rtol=1e-6)
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-5)
    assert problem.metrics == ("accuracy",)
    np.testing.assert_allclose(found["accuracy"], [hits.mean()] * 2, rtol=1e-6)


def head_of(model, hidden):
    hidden = jax.nn.relu(hidden.reshape(len(hidden), -1) @ model.dense.weight + model.dense.bias)
    return hidden @ model.head.weight + model.head.bias


def test_cnn_against_lax_convolutions():
    @eqx.filter_jit
    def expected(model, hidden):
        for layer in model.convolutions:
            hidden = pool(jax.nn.relu(conv(hidden, layer)))
        return head_of(model, hidden)

    problem = PROBLEMS["cnn"]
    found = expected(model_of(problem), problem.data[0])
    np.testing.assert_allclose(seen("cnn")["logits"], found, rtol=1e-4, atol=1e-5)


def test_resnet_against_lax_convolutions():
    @eqx.filter_jit
    def expected(model, images):
        hidden = conv(images, model.stem)
        for layer in model.branches:
            hidden = hidden + conv(jax.nn.relu(hidden), layer) / np.sqrt(2)
        return head_of(model, pool(jax.nn.relu(hidden)))

    problem = PROBLEMS["resnet"]
    found = expected(model_of(problem), problem.data[0])
    np.testing.assert_allclose(seen("resnet")["logits"], found, rtol=1e-4, atol=1e-5)


def test_odd_sides_lose_their_last_row_in_pooling():
    cnn = sl.problems.CNN.initialise((7, 6, 1), 2, 0, channels=2, dense=3)
    assert jax.eval_shape(cnn.logits, jnp.ones((5, 7, 6, 1))).shape == (5, 2)


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_against_loops(causal):
    rng = np.random.default_rng(5)
    block = Block.initialise(rng, 6, 2, 5, 1, causal)
    block = jax.tree.map(lambda a: np.asarray(a + 0.3 * rng.normal(size=a.shape), np.float32), block)
    x = rng.normal(size=(2, 4, 6))

    def norm(v, layer):
        return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * np.asarray(layer.scale) + np.asarray(layer.bias)

    def dense(v, layer):
        return v @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias)

    expected = np.empty_like(x)
    for n, row in enumerate(x):
        qkv = np.array([dense(norm(v, block.attention_norm), block.qkv) for v in row])
        for t in range(4):
            heads = []
            for h in (slice(0, 3), slice(3, 6)):
                q, k, v = qkv[t, :6][h], qkv[:, 6:12][:, h], qkv[:, 12:][:, h]
                last = t + 1 if causal else 4
                weights = np.exp(k[:last] @ q / np.sqrt(3))
                heads.append(weights @ v[:last] / weights.sum())
            middle = row[t] + dense(np.concatenate(heads), block.out)
            up = dense(norm(middle, block.mlp_norm), block.up)
            gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
            expected[n, t] = middle + dense(gelu, block.down)
    found = eqx.filter_jit(lambda block, x: block(x))(block, np.asarray(x, np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_patches_of_the_vision_transformer():
    model = model_of(PROBLEMS["vit"])
    image = np.asarray(PROBLEMS["vit"].data[0][:1])
    changed = image.copy()
    changed[0, 5, 2, 0] += 1  # in the third patch, row by row, at place 4 · 1 + 2
    weight = np.asarray(model.embedding.weight)

    @jax.jit
    def tokens(images):
        seen = []

        class Spy:
            def __call__(self, x):
                seen.append(x)
                return x

        object.__setattr__(spied := jax.tree.map(lambda a: a, model), "blocks", (Spy(),))
        spied.logits(images)
        return seen[0]

    difference = np.asarray(tokens(changed)) - np.asarray(tokens(image))
    np.testing.assert_allclose(difference[0, 2], weight[6], atol=1e-5)
    assert np.abs(difference[0, [0, 1, 3]]).max() == 0


def test_no_later_character_changes_a_logit():
    problem = PROBLEMS["transformer"]
    model, features = model_of(problem), problem.data[0]
    features = np.asarray(features)
    before = np.asarray(LOGITS(model, features))
    for place in range(6):
        changed = features.copy()
        changed[:, place] = (features[:, place] + 1) % VOCABULARY
        after = np.asarray(LOGITS(model, changed))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert (after[:, place] != before[:, place]).any()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_parameters_precision_is_kept(name, dtype):
    problem = PROBLEMS[name]
    expected = float(seen(name)["loss"])
    with jax.enable_x64(dtype == "float64"):
        model = jax.tree.map(lambda a: np.asarray(a).astype(dtype), model_of(problem))
        assert jax.eval_shape(lambda m: m.logits(problem.data[0]), model).dtype == dtype
        losses = jax.jit(cross_entropy)(model, problem.data)
        assert losses.dtype == {"bfloat16": "float32", "float64": "float64"}[dtype]
        assert float(losses.mean()) == pytest.approx(expected, rel={"bfloat16": 0.02, "float64": 1e-5}[dtype])
        grads = jax.eval_shape(jax.grad(lambda m: cross_entropy(m, problem.data).mean()), model)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {dtype}


@pytest.mark.parametrize("name", TINY)
def test_a_description_builds_the_problem_again(name):
    problem = PROBLEMS[name]
    described = json.loads(json.dumps(problem.describe()))
    assert {"dataset", "subset", "data_seed", "data_dir", "seed"} < described.keys()
    again = sl.network(**described)
    np.testing.assert_array_equal(again.start, problem.start)
    assert all((np.asarray(a) == b).all() for a, b in zip(again.data, problem.data, strict=True))
    assert again.describe() == problem.describe()
    other = sl.network(**{**described, "seed": 4, "data_seed": 2})
    assert not np.array_equal(other.start, problem.start)
    assert not np.array_equal(other.data[0], problem.data[0])


def test_defaults():
    vit = sl.network("vit", subset=10)
    width, hidden = 48, 192
    block = 4 * width**2 + 2 * width * hidden + 9 * width + hidden
    assert vit.dim == 5 * width + 16 * width + 3 * block + 2 * width + 49 * 10
    assert vit.describe()["patch"] == 2
    assert sl.network("cnn", subset=10).dim == 320 + 9248 + (2 * 2 * 32 + 1) * 128 + 129 * 10
    assert sl.network("resnet", subset=10).dim == 320 + 9248 + (4 * 4 * 32 + 1) * 128 + 129 * 10


def test_the_variance_of_a_deep_residual_network_stays_bounded():
    problem = sl.network("resnet", subset=10, channels=64, blocks=16, dense=4)
    model, (features, _) = model_of(problem), problem.data

    @eqx.filter_jit
    def growth(model, features):
        hidden = start = model.stem(features)
        for branch in model.branches:
            hidden = hidden + branch(jax.nn.relu(hidden)) / 4
        return hidden.var() / start.var()

    # (1 + 1/16)^16 = 2.64 inside; less at the border, where zeros enter
    assert 1.2 < float(growth(model, features)) < 3.2


def test_the_mlp_takes_two_classes_with_one_logit_and_images_flattened():
    binary = sl.network("mlp", width=2, depth=1, subset=20)
    assert binary.dim == 31 * 2 + 3
    sign = np.asarray(LOGITS(model_of(binary), binary.data[0]))[:, 0] > 0
    assert float(binary.metric("accuracy", binary.start)) == pytest.approx((sign == np.asarray(binary.data[1])).mean())
    assert PROBLEMS["mlp"].data[0].shape == (12, 64)


def test_a_text_file_is_a_data_set(tmp_path):
    file = tmp_path / "abc"
    file.write_text("abcabcabcabcabcabc", encoding="utf-8")
    problem = sl.network("transformer", file, **TINY["transformer"])
    assert problem.data[0].shape == (2, 6)
    assert problem.dim == DIMS["transformer"] - 9 * VOCABULARY + 9 * 3
    assert problem.describe()["dataset"] == str(file)
    assert problem_label(problem.describe()) == "transformer (abc)"
    assert problem_label(PROBLEMS["vit"].describe()) == "ViT (digits, 12 examples)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sl.network("vti"), "name: got 'vti'.*Did you mean 'vit'?"),
        (lambda: sl.network("cnn", chanels=3), "cnn's sizes: got 'chanels'; .*'dense'. Did you mean 'channels'?"),
        (lambda: sl.network("mlp", heads=3), "mlp's sizes: got 'heads'; choose one of 'width', 'depth'"),
        (lambda: sl.network("cnn", channels=0), "channels: got 0; it must be 1 or more"),
        (lambda: sl.network("vit", patch=3), "patch: got 3, which does not divide the sides of images of 8 × 8"),
        (lambda: sl.network("transformer", heads=5), "heads: got 5, which does not divide the width 48"),
        (lambda: sl.network("cnn", "breast-cancer"), "dataset: got 'breast-cancer' .a table., but cnn takes images"),
        (lambda: sl.network("vit", "python-docs"), "dataset: got 'python-docs' .a text., but vit takes images"),
        (lambda: sl.network("transformer", "digits"), "dataset: got 'digits' .images., but transformer takes a text"),
        (lambda: sl.network("transformer", "python-dcos"), "Did you mean 'python-docs'?"),
        (lambda: sl.network("cnn", subset=5), "subset: got 5; there are 1797 examples of 10 classes"),
        (lambda: sl.network("cnn", data_dir="x"), "data_dir: digits is not read from a folder"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet", "vit", "transformer"])
def test_gradient_descent_fits_the_data(name):
    options = {"transformer": dict(context=8, width=16, depth=1, heads=2, mlp=32)}.get(name, {})
    problem = sl.network(name, subset=20, **options)
    result = sl.simulate(problem, sl.GaussianNoise(1e-4), sl.AdamW(lr=0.01), "optimizer", steps=100, paths=1)
    curve = result.dataset.loss_mean.values.ravel()
    assert curve[-1] < 0.1 * curve[0]
