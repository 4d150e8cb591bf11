"""Noise that is known by its draws: any law that a user can sample."""

import math
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy import stats

from sdelens.core import check
from sdelens.core.captured import captured
from sdelens.core.compilation import quick
from sdelens.core.random import Stream
from sdelens.core.tree import Layout, column
from sdelens.noise._base import AbstractNoise, NoiseLaw
from sdelens.noise._batch_sign import sampled_root
from sdelens.noise._values import laid_out
from sdelens.problems import AbstractProblem

__all__ = ["SampledNoise"]

_FALSE_ALARM: Final = 1e-6
_MOST_DRAWS, _FEWEST_DRAWS, _NUMBERS = 2**14, 64, 2**22
"""Numbers of draws by which mean and variance are checked, and of random numbers in all."""
_ESTIMATED = 1024
"""Draws from which a variance is estimated outside a run."""


class SampledNoise(AbstractNoise):
    r"""Noise Z of any law with mean 0 that a function can draw: stable, skewed, dependent on x, label noise.

    The optimizer and the model ``"empirical"`` need only draws. Closed-form SDEs of SGD, RMSprop, Adam and others are
    driven by Brownian motion with the covariance of Z, so they need to know that there is one:

    - ``variance=`` gives the variances, for coordinates that are uncorrelated;
    - ``variance="sampled"`` states that Z has a variance. At every step of the SDE, K = `samples` draws Zⱼ then give
      the diagonal of Σ, (1/K) Σⱼ Zⱼ², and the noise (1/√K) Σⱼ ξⱼ Zⱼ with ξⱼ ~ N(0, 1), whose covariance is Σ, with
      all correlations.

    SignSGD's SDE needs no variance: E sign(∇f + Z) and the covariance of the signs are those of K draws, new at every
    step. The sampling error of the mean is counted as noise, so the covariance of a step is right on average.

    The mean and a given variance are checked by up to 16 384 draws at the start of the problem. Where the t-statistic
    of a coordinate has Student's law, which holds approximately for many draws with a variance, a law with mean 0 is
    refused once in a million binds, whatever the number of coordinates.

    Args:
        sample: function sample(key, params) of a random key and the parameters (the user's pytree) that draws Z for one
            path: a pytree like the parameters, or a flat array of d numbers. It must use jax.random and the key for
            all randomness.
        variance: the variances, at least 0: a number, an array, a pytree like the parameters, or a function of the
            parameters that returns one of these; ``"sampled"``; or None if there is none or it is not known. Numbers
            may be `math.inf`.
        samples: K ≥ 2.
        check_mean: False for a law whose mean a few thousand draws cannot show, for example one with very rare large
            values.

    Raises:
        ValueError, TypeError: if an argument is out of its range; when it is bound, if the function cannot be compiled,
            does not return numbers for all parameters, is not a function of its key, or has a mean other than 0 or a
            larger variance than the given one.

    Warns:
        RuntimeWarning: if draws have a variance significantly below a given one; heavy tails can cause this.

    Examples:
        >>> import jax, sdelens as sl
        >>> skewed = sl.SampledNoise(lambda key, x: jax.random.exponential(key, x.shape) - 1, variance=1.0)
        >>> growing = sl.SampledNoise(lambda key, x: x * jax.random.normal(key, x.shape), variance=lambda x: x**2)
    """

    sample: Callable[[Any, Any], Any] = eqx.field(static=True)
    variance: Any
    samples: int = eqx.field(static=True)
    check_mean: bool = eqx.field(static=True)

    def __init__(
        self, sample: Callable[[Any, Any], Any], variance: Any = None, *, samples: int = 8, check_mean: bool = True
    ) -> None:
        if not callable(sample):
            raise TypeError(f"sample: got {type(sample).__name__}; give a function sample(key, params).")
        if isinstance(variance, str) and variance != "sampled":
            raise ValueError(f"variance: got {variance!r}; give variances, a function of the parameters, or 'sampled'.")
        if not isinstance(check_mean, bool):
            raise TypeError(f"check_mean: got {check_mean!r}; give True or False.")
        self.sample, self.check_mean = sample, check_mean
        self.variance = variance if callable(variance) else _checked(variance)
        self.samples = check.at_least("samples", samples, 2)

    def bind(self, problem: AbstractProblem) -> NoiseLaw:
        drawn = _Drawn(self.sample, problem.layout, problem.start.dtype.name)
        _ = _compiled("sample", lambda x: drawn(jax.random.key(0), x), problem.start)
        values, function, estimated = None, None, isinstance(self.variance, str)
        if callable(self.variance):
            function = _VarianceOf(self.variance, problem.layout, problem.start.dtype.name)
            _ = _compiled("variance", function, problem.start)
        elif self.variance is not None and not estimated:
            values = laid_out("variance", self.variance, problem)
        law = SampledLaw(drawn, values, function, estimated, self.samples)
        self._check_draws(law, problem)
        return law

    def at_batch_ratio(self, ratio: float) -> "SampledNoise":
        """The same law at ratio 1; an error otherwise, since the law of a mean of draws is not known."""
        if check.positive("ratio", ratio) == 1:
            return self
        raise ValueError(
            f"ratio: got {ratio:g}, but the law of an average of draws is not known; for a whole number give "
            "sl.DistributedNoise(noise, workers=ratio), which averages draws."
        )

    def describe(self) -> dict[str, Any]:
        return {"name": "sampled", "sample": getattr(self.sample, "__qualname__", "function"), "rerunnable": False}

    def _check_draws(self, law: "SampledLaw", problem: AbstractProblem) -> None:
        """Refuse draws that are not functions of the key, or whose mean or variance is not as stated."""
        count = int(min(max(_NUMBERS // problem.dim, _FEWEST_DRAWS), _MOST_DRAWS))
        stream = Stream(np.array([0x5A3B1E5, 0], np.uint32), np.arange(count, dtype=np.uint32))  # type: ignore[arg-type]
        found = _looked(law, problem.start, stream, captured=captured(law))
        draws, again, variance = (np.asarray(a, np.float64) for a in found)
        rounding = 1e-3 * float(np.abs(again).max())
        if not np.allclose(draws[:, :1], again, rtol=0, atol=rounding, equal_nan=True):
            raise ValueError(
                "sample: the function returned different values for the same key; draw them by jax.random from the "
                "key that it receives."
            )
        if (np.abs(draws - draws[:, :1]) <= 1e-5 * np.abs(draws).max()).all():
            raise ValueError("sample: the function returned the same values for two keys; draw them from the key.")
        if not np.isfinite(draws).all():
            raise ValueError("sample: a draw at the start is not finite; give a law of finite values.")
        limit = float(stats.t.isf(_FALSE_ALARM / (2 * problem.dim), count - 1))
        mean, sd = draws.mean(axis=1), draws.std(axis=1, ddof=1)
        least = 1e-6 * np.abs(draws).max(axis=1)  # rounding
        error = np.maximum(sd / math.sqrt(count), least)
        far = np.divide(np.abs(mean), error, out=np.zeros_like(mean), where=error > 0)
        if self.check_mean and far.max() > limit:
            at = int(far.argmax())
            raise ValueError(
                f"sample: the mean of {count} draws is {mean[at]:.4g} ± {error[at]:.2g} in coordinate {at} at the "
                "start, not 0: the stochastic gradient would be biased. Subtract the mean of the law (or give "
                "check_mean=False if very rare large values make up for it)."
            )
        if variance.size == 0:
            return
        squares = draws**2
        found = squares.mean(axis=1)
        error = np.maximum(squares.std(axis=1, ddof=1) / math.sqrt(count), least**2)
        given = np.broadcast_to(variance, found.shape)
        excess = np.divide(found - given, error, out=np.zeros_like(found), where=(error > 0) & np.isfinite(given))
        at = int(np.abs(excess).argmax())
        message = (
            f"variance: is {given[at]:.4g} in coordinate {at} at the start, where {count} draws have {found[at]:.4g} ± "
            f"{error[at]:.2g}"
        )
        if excess.max() > limit:
            raise ValueError(f"{message}; give the variance of the draws, not their scale, or variance='sampled'.")
        if (given < 0).any():
            raise ValueError(f"variance: got {given.min():g} at the start; variances must not be negative.")
        if excess.min() < -limit:
            warnings.warn(
                f"{message}. Unless the law has heavy tails, its SDEs would have too much noise.",
                RuntimeWarning,
                stacklevel=6,
            )


class SampledLaw(NoiseLaw):
    """The law of a user's draws on a problem.

    Attributes:
        drawn: the function from a key and a flat x to flat draws.
        values: variances laid out by coordinates, or None.
        function: variances as a function of flat x, or None.
        estimated: whether variances are those of draws.
        samples: K.
        draws: draws of the current step, of shape (K, d, P), a part of the cache.
    """

    independent = False
    constant = False
    has_quadrature = False
    variance_remedy = (
        " If the samples have a variance, give SampledNoise(sample, variance=...) its values, a function of the "
        "parameters, or 'sampled', which estimates it."
    )
    drawn: "_Drawn" = eqx.field(static=True)
    values: Array | None
    function: "_VarianceOf | None" = eqx.field(static=True)
    estimated: bool = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    draws: Any = None

    @property
    def sign_samples(self) -> int:  # type: ignore[override]
        return self.samples

    def sample(self, x: Array, stream: Stream) -> Array:
        first, second = (word[0] for word in stream.bits(1))
        keys = jax.random.wrap_key_data(jnp.stack([first, second], axis=-1), impl="threefry2x32")
        wide = x[:, None] if x.ndim == 1 else x
        wide = jnp.broadcast_to(wide, (x.shape[0], stream.paths.shape[0]))
        return jax.vmap(self.drawn, in_axes=(0, -1), out_axes=-1)(keys, wide)

    def has_variance(self, x: Array) -> bool:
        """Whether the user says so."""
        return self.estimated or (self._is_given and super().has_variance(x))

    def variance(self, x: Array) -> Array:
        if self.function is not None:
            return _per_path(self.function, x)
        if self.values is not None:
            return column(self.values, x)
        if not self.estimated:
            return jnp.full_like(x, jnp.inf)
        if self.draws is not None:
            return jnp.square(self.draws).mean(axis=0)
        paths = jnp.zeros(1 if x.ndim == 1 else x.shape[1], jnp.uint32)
        stream = Stream(jnp.asarray([0x5A3B1E5, 1], jnp.uint32), paths)

        def add(j: Array, total: Array) -> Array:
            return total + jnp.square(self.sample(x, stream.at(j)))

        total = lax.fori_loop(0, _ESTIMATED, add, jnp.zeros((x.shape[0], paths.shape[0]), x.dtype))
        return (total / _ESTIMATED).reshape(x.shape)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        return self._signs(grad).mean(axis=0)

    def density(self, z: Array, x: Array) -> Array:
        raise ValueError("noise: sampled noise has no density here; use the models of sl.compare.")

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        raise ValueError("noise: sampled noise has no quadrature; use coefficients='sampled'.")

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        if use != "signs" and not self.estimated:
            return None
        return lax.map(lambda j: self.sample(x, stream.at(j)), jnp.arange(self.samples))

    def with_cache(self, found: Any) -> "SampledLaw":
        return eqx.tree_at(lambda law: law.draws, self, found, is_leaf=lambda leaf: leaf is None)

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        return (self.samples,) if self.estimated else (dim,)

    def apply_root(self, x: Array, dW: Array) -> Array:
        if not self.estimated:
            return jnp.sqrt(self.variance(x)) * dW
        return (self._held() * dW[:, None]).sum(axis=0) / math.sqrt(self.samples)

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        return (self.samples,)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        return sampled_root(self._signs(grad), 1, dW)

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        raise ValueError(
            "noise: the joint law of the signs and the noise of sampled noise is not known here; use the model "
            "'empirical', which draws both."
        )

    def fourth_cumulant(self, x: Array) -> Array:
        raise ValueError(
            "noise: the fourth moment of sampled noise is not known here; use the model 'sde', or 'empirical'."
        )

    def excess_kurtosis(self, x: Array) -> Array:
        """Infinite: not known."""
        return jnp.full_like(x, jnp.inf)

    def lacks_fourth_moment(self, x: Array) -> bool:
        """False: not known."""
        return False

    def describe(self) -> dict[str, Any]:
        return {"name": "sampled", "sample": self.drawn.label, "rerunnable": False}

    @property
    def _is_given(self) -> bool:
        return self.values is not None or self.function is not None

    def _held(self) -> Array:
        if self.draws is None:
            raise ValueError(
                "noise: sampled noise is drawn by the library's own integrators only; use sl.compare or sl.simulate."
            )
        return self.draws

    def _signs(self, grad: Array) -> Array:
        return jnp.sign(grad + self._held())


@dataclass(frozen=True)
class _Drawn:
    """A user's function of a key and parameters, from flat x to a flat draw; equal for the same function."""

    function: Callable[[Any, Any], Any]
    layout: Layout
    dtype: str

    @property
    def label(self) -> str:
        return getattr(self.function, "__qualname__", "function")

    def __call__(self, key: Array, x: Array) -> Array:
        return _flat("sample", self.function(key, self.layout.unravel(x)), self.layout).astype(self.dtype)


@dataclass(frozen=True)
class _VarianceOf:
    """A user's function of the parameters that returns variances, as a function of flat x of one path."""

    function: Callable[[Any], Any]
    layout: Layout
    dtype: str

    def __call__(self, x: Array) -> Array:
        value = self.function(self.layout.unravel(x))
        if jnp.shape(value) == ():
            value = jnp.broadcast_to(jnp.asarray(value), (self.layout.size,))
        return _flat("variance", value, self.layout).astype(self.dtype)


def _flat(name: str, value: Any, layout: Layout) -> Array:
    """A pytree like the parameters, or a flat array, as a flat array.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, jax.Array | np.ndarray) and value.shape == (layout.size,) and not layout.matches(value):
        return jnp.asarray(value)
    try:
        leaves = layout.treedef.flatten_up_to(value)
        pairs = [(leaf, s) for leaf, s in zip(leaves, layout.shapes, strict=True) if s is not None]
        return jnp.concatenate([jnp.broadcast_to(leaf, shape).ravel() for leaf, shape in pairs])
    except (ValueError, TypeError) as error:
        found = f"shape {jnp.shape(value)}" if hasattr(value, "shape") else "a pytree that is not like the parameters"
        raise ValueError(
            f"{name}: returned {found}; return a pytree like the parameters, or {layout.size} numbers."
        ) from error


def _compiled(name: str, function: Callable[[Array], Array], start: Array) -> Any:
    """Shape and dtype of what a user's function returns, after it was traced."""
    try:
        return jax.eval_shape(function, start)
    except (jax.errors.JAXTypeError, TypeError, AttributeError) as error:
        what = "a function of a random key and the parameters" if name == "sample" else "a function of the parameters"
        raise TypeError(
            f"{name}: cannot be compiled as {what} ({error}); use jax.numpy and jax.random in it."
        ) from error


def _checked(variance: Any) -> Any:
    """Variances as numbers, not negative, possibly infinite."""
    if variance is None or isinstance(variance, str):
        return variance
    for path, leaf in jax.tree_util.tree_flatten_with_path(variance)[0]:
        if check.is_traced(leaf):
            continue
        array = np.asarray(leaf, np.float64)
        if not (array >= 0).all():
            raise ValueError(
                f"variance{jax.tree_util.keystr(path)}: got {array.min():g}; variances must not be negative."
            )
    return variance


def _per_path(function: Callable[[Array], Array], x: Array) -> Array:
    return function(x) if x.ndim == 1 else jax.vmap(function, in_axes=-1, out_axes=-1)(x)


@partial(quick, static_argnames="captured")
def _looked(law: SampledLaw, x: Array, stream: Stream, captured: Hashable) -> tuple[Array, Array, Array]:
    """Draws at x, of shape (d, count), the first one again, and the given variances, empty if none were given.

    It is compiled anew when something changes that the user's functions read from outside: `captured`. The function is
    traced twice, so that random numbers of NumPy differ.
    """
    given = jnp.broadcast_to(law.variance(x), x.shape) if law._is_given else jnp.zeros(0)
    return law.sample(x, stream), law.sample(x, stream._replace(paths=stream.paths[:1])), given
