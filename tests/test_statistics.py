"""Streaming statistics: any split into shards and chunks gives the plain answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdelens.run.statistics import StepStatistics, _counted, _counted_apart, observe, unpack
from sdelens.run.summary import BUCKETS, QUANTILE_ERROR, merge, quantiles


@functools.partial(jax.jit, static_argnames="groups")
def observed(loss, x, alive, groups):
    return observe(loss, -2 * loss[None], loss * 0 + 2, x[:, :0], x, alive, groups, 0.0)


def summary_of(loss, x, alive, first, groups):
    record = observed(loss, x, alive, groups)
    return unpack(StepStatistics(*(np.asarray(leaf)[None] for leaf in record)), first, groups, watched=2)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 5, 16, 33]), min_size=1, max_size=4),
    groups=st.sampled_from([1, 7, 64]),
    seed=st.integers(0, 2**31),
)
def test_merged_shards_equal_numpy(sizes, groups, seed):
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    loss = (1000 + rng.normal(size=n)).astype(
        np.float32
    )  # a large offset, on which naive sums of squares lose all digits
    x = rng.normal(size=(2, n)).astype(np.float32)
    alive = rng.random(n) < 0.8
    merged, first = None, 0
    for size in sizes:
        part = slice(first, first + size)
        own = summary_of(loss[part], x[:, part], alive[part], first, groups)
        merged = own if merged is None else merge(merged, own)
        first += size
    kept = loss[alive].astype(np.float64)
    mean, std = merged.overall()
    assert merged.paths[0] == alive.sum()
    if alive.any():
        np.testing.assert_allclose(mean[0], kept.mean(), rtol=1e-6)
        np.testing.assert_allclose(merged.seen_mean[0], x[:, alive].mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(merged.seen_m2[0], alive.sum() * x[:, alive].var(axis=1), rtol=1e-4, atol=1e-5)
    if alive.sum() > 1:
        np.testing.assert_allclose(std[0], kept.std(ddof=1), rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(merged.overall(1)[1][0], 2 * kept.std(ddof=1), rtol=2e-3, atol=2e-4)
    for g in range(groups):
        members = [loss[i] for i in range(n) if i % groups == g and alive[i]]
        assert merged.living[0, g] == len(members)
        if members:
            mean = np.mean(members, dtype=np.float64)
            np.testing.assert_allclose(merged.mean[0, :, g], [mean, -2 * mean], rtol=1e-6)
    assert merged.histogram.sum() == alive.sum()


@pytest.mark.parametrize(
    ("low", "high"), [(1e-8, 1e8), (-50.0, 50.0), (0.999, 1.001)], ids=["nine decades", "both signs", "narrow"]
)
def test_quantiles_are_within_the_stated_error(low, high):
    rng = np.random.default_rng(0)
    values = np.exp(rng.uniform(np.log(low), np.log(high), 20_001)) if low > 0 else rng.uniform(low, high, 20_001)
    values = values.astype(np.float32)
    levels = np.array([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    summary = summary_of(values, np.zeros((1, len(values)), np.float32), np.ones(len(values), bool), 0, 1)
    ours = quantiles(summary.histogram, summary.buckets, levels)[0]
    exact = np.quantile(values, levels, method="inverted_cdf")
    assert (np.abs(ours - exact) <= QUANTILE_ERROR * np.abs(exact) + 1e-9).all()


def test_quantiles_of_zeros_and_of_nothing():
    result = quantiles(np.array([[10], [0]]), np.array([BUCKETS // 2]), np.array([0.1, 0.9]))
    np.testing.assert_array_equal(result[0], [0, 0])
    assert np.isnan(result[1]).all()


def test_counters_apart_count_the_same():
    index = jnp.array([0, 5, 5, BUCKETS, BUCKETS - 1, 3, 5] * 40)
    apart, together = jax.jit(lambda i: (_counted_apart(i), _counted(i)))(index)
    np.testing.assert_array_equal(apart, together)
    assert int(together.sum()) == 240  # what lies beyond the last bucket is left out
