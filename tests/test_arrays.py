"""Arrays among JSON types: what is written is read back."""

import json

import numpy as np
import pytest

import sdelens as sl
from sdelens.core.arrays import MOST_LISTED, plain, restored


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (MOST_LISTED,), (MOST_LISTED + 1,), (40, 50)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_arrays_are_read_back_exactly(shape, dtype):
    array = np.asarray(np.random.default_rng(0).normal(size=shape[::-1])).T.astype(dtype)
    written = json.loads(json.dumps(plain(array)))
    read = restored(written)
    np.testing.assert_array_equal(read.astype(dtype), array)
    assert read.dtype == np.float64


def test_numbers_in_float32_are_written_as_they_are_printed():
    assert plain(np.float32([[0.1, 2.4], [1e-8, -3]])) == [[0.1, 2.4], [1e-8, -3.0]]


def test_large_problems_describe_all_their_numbers():
    curvature, scale = np.linspace(1, 2, 2000), np.linspace(0.1, 0.2, 2000)
    problem = sl.Quadratic(curvature, start=1.0)
    described = problem.describe(), sl.GaussianNoise(scale).describe()
    read = [restored(part[name]) for part, name in zip(described, ("curvature", "scale"), strict=True)]
    np.testing.assert_array_equal(read[0], curvature.astype(np.float32))
    np.testing.assert_array_equal(read[1], scale)
