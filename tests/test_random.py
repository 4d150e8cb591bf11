"""Random numbers: the generator is JAX's, the law is right, and no number depends on how paths are grouped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import special, stats

from sdelens.core.random import Stream, _normal_quantile, _unit, stream_key, threefry2x32

SAMPLES = 200_000
ALPHA = 1e-5  # false-alarm rate of each test of a law


def stream(paths, seed=0, name="test"):
    return Stream(stream_key(seed, name), np.asarray(paths, np.uint32))


@functools.partial(jax.jit, static_argnames=("law", "size", "dtype", "lane"))
def _drawn(draws, step, substep, law, size, dtype, lane):
    at = draws.at(step, substep)
    return at.normal(size, dtype, lane) if law == "normal" else getattr(at, law)(size, dtype)


def drawn(draws, size, step=3, substep=0, law="normal", dtype=np.float32, lane=0):
    """Numbers of a step, compiled once for each law and shape."""
    return np.asarray(_drawn(draws, np.int32(step), np.int32(substep), law, size, jnp.dtype(dtype), lane))


_integers = jax.jit(Stream.integers, static_argnums=(1, 2))
_permutation = jax.jit(Stream.permutation, static_argnums=2)


@pytest.mark.parametrize("below", [1, 5, 64])
def test_integers_are_uniform(below):
    numbers = np.asarray(_integers(stream(np.arange(SAMPLES // 4)), 4, below)).ravel()
    counts = np.bincount(numbers, minlength=below)
    assert len(counts) == below
    if below > 1:
        assert stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("below", [1, 7, 64, 65, 1797])
def test_permutations_hold_every_number_once(below):
    values = np.asarray(_permutation(stream(np.arange(9)), np.arange(below), below))
    np.testing.assert_array_equal(np.sort(values, axis=0), np.arange(below)[:, None] + np.zeros((1, 9), int))
    if below > 1:
        assert len({tuple(column) for column in values.T}) > 1
    some = np.asarray(_permutation(stream(np.arange(9)), np.array([below - 1, 0]), below))
    np.testing.assert_array_equal(some, values[[below - 1, 0]])


@pytest.mark.parametrize("below", [5, 65, 1797])
def test_permutations_are_uniform_in_pairs(below):
    """Where two numbers go, in 10 by 10 cells; of 5 numbers, all 120 permutations."""
    draws = stream(np.arange(40_000))
    if below == 5:
        values = np.asarray(_permutation(draws, np.arange(5), 5))
        counts = np.unique((values * 5 ** np.arange(5)[:, None]).sum(axis=0), return_counts=True)[1]
        assert len(counts) == 120
        assert stats.chisquare(counts).pvalue > ALPHA
        return
    first, second = np.asarray(_permutation(draws, np.array([0, 1]), below)) * 10 // below
    counts = np.bincount(10 * first + second, minlength=100)
    width = np.bincount(np.arange(below) * 10 // below)
    pairs = np.outer(width, width) - np.diag(width)
    assert stats.chisquare(counts, pairs.ravel() * 40_000 / (below * (below - 1))).pvalue > ALPHA


def test_threefry_equals_jax_bit_for_bit():
    rng = np.random.default_rng(0)
    key = rng.integers(0, 2**32, 2, dtype=np.uint32)
    counter = rng.integers(0, 2**32, (2, 1000), dtype=np.uint32)
    ours = jax.jit(threefry2x32)((key[0], key[1]), (counter[0], counter[1]))
    np.testing.assert_array_equal(ours, threefry2x32((key[:1], key[1:]), (counter[0], counter[1])))  # NumPy alike
    theirs = jax.jit(threefry_2x32)(key, counter.ravel())
    np.testing.assert_array_equal(np.concatenate(ours), np.asarray(theirs))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_normal_law(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        draws = drawn(stream(range(SAMPLES // 100)), 100, dtype=dtype)
    assert draws.shape == (100, SAMPLES // 100)
    assert draws.dtype == dtype
    assert stats.kstest(draws.ravel(), "norm").pvalue > ALPHA


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_uniform_law_on_the_open_interval(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        draws = drawn(stream(range(SAMPLES // 100)), 100, law="uniform", dtype=dtype)
    assert draws.min() > 0
    assert draws.max() < 1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > ALPHA


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 65, 200])
def test_signs_are_fair_and_independent(size):
    """Means of each coordinate and of products of pairs, in standard errors: at most 20 100 of them, 5.5 in 8e-4."""
    paths = 4000
    draws = drawn(stream(range(paths)), size, law="signs").astype(np.float64)
    assert draws.shape == (size, paths)
    assert set(np.unique(draws)) <= {-1.0, 1.0}
    gram = draws @ draws.T / np.sqrt(paths)
    off = gram[~np.eye(size, dtype=bool)]
    assert np.abs(draws.sum(axis=1) / np.sqrt(paths)).max() < 5.5
    assert np.abs(off).max(initial=0) < 5.5
    whole = drawn(stream(range(8)), size, law="signs")
    np.testing.assert_array_equal(whole, draws[:, :8])


def test_normal_quantile_is_accurate_over_all_its_inputs():
    """On every value that `_unit` has: error and variance as stated, and no value below that of a smaller input."""
    cells = np.arange(2**23)
    ours = np.asarray(jax.jit(lambda words: _normal_quantile(_unit(words)))(cells.astype(np.uint32) << 9), np.float64)
    exact = special.ndtri((cells + 0.5) * 2.0**-23)
    apart = 2.0**-23 * np.sqrt(2 * np.pi) * np.exp(exact**2 / 2)
    assert (np.abs(ours - exact) <= 2e-6 * np.abs(exact) + 0.04 * apart).all()
    assert np.mean(ours**2) == pytest.approx(np.mean(exact**2), rel=3e-7)
    assert (np.diff(ours) >= 0).all()
    np.testing.assert_array_equal(ours, -ours[::-1])


@pytest.mark.parametrize("axis", ["step", "substep", "lane", "seed", "name", "path", "coordinate"])
def test_draws_that_differ_in_one_index_are_uncorrelated(axis):
    def draw(step=1, substep=0, lane=0, seed=0, name="a", shift=0):
        return drawn(stream(np.arange(2000) + shift, seed, name), 50, step, substep, lane=lane)

    a = draw()
    others = {
        "step": lambda: draw(step=2),
        "substep": lambda: draw(substep=1),
        "lane": lambda: draw(lane=1),
        "seed": lambda: draw(seed=1),
        "name": lambda: draw(name="b"),
        "path": lambda: draw(shift=2000),
        "coordinate": lambda: np.roll(a, 1, axis=0),
    }
    b = others[axis]()
    correlation = (a * b).mean() * np.sqrt(a.size)  # standard normal under independence
    assert abs(correlation) < stats.norm.isf(ALPHA / 2)


def test_draws_depend_on_the_global_path_alone():
    whole, part = (drawn(stream(paths), 7, step=5) for paths in (range(10), range(4, 8)))
    np.testing.assert_array_equal(whole[:, 4:8], part)


def test_draws_depend_on_the_flat_coordinate_alone():
    more, fewer = (drawn(stream(range(3)), n, step=5) for n in (9, 4))
    np.testing.assert_array_equal(more[:4], fewer)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_every_seed_up_to_64_bits_has_its_own_stream(seed):
    keys = {tuple(np.asarray(stream_key(s, "x")).tolist()) for s in (seed, seed ^ 1, seed ^ (1 << 40))}
    assert len(keys) == 3
