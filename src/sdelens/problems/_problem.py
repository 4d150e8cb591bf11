"""A user's loss of a pytree of parameters, with or without data."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core import check
from sdelens.core.captured import Untraced
from sdelens.core.names import DTYPES
from sdelens.core.tree import Layout, flatten_parameters
from sdelens.problems._base import AbstractProblem
from sdelens.problems._fingerprint import fingerprint
from sdelens.problems._loss_checks import check_examples, check_loss, check_metric

__all__ = ["EXAMPLE_BYTES", "Problem"]

EXAMPLE_BYTES = 2**22
"""Size in bytes of the chunks in which per-example gradients are computed."""


class Problem(AbstractProblem):
    r"""Any loss of any pytree of parameters, with or without data.

    Without data, ``loss(params) -> scalar`` is minimised. With data, ``loss(params, data) -> per-example losses`` of
    shape (n,), and their mean is minimised. Floating arrays of `start` are the parameters; functions, strings and
    Python numbers in it are left unchanged, so Flax, Haiku and Equinox models can be used.

    Args:
        loss: a function of JAX operations, deterministic and differentiable.
        start: pytree at which every path starts.
        data: pytree of arrays with a common first axis of n examples, or None.
        infimum: the infimum of the loss, if known (0 for a non-negative loss); errors are relative to it.
        metrics: further quantities to measure, by name: functions that are called as `loss` is and return values of the
            same shape; `metric` returns their means.
        gradient_dtype: ``"bfloat16"``, ``"float16"``, ``"float32"`` or ``"float64"``: dtype to which parameters and
            floating data are cast for gradients; losses and states keep the dtype of `start`. None means that dtype.

    Raises:
        TypeError: if a leaf of `start` is an integer array or random key, or the loss or a metric is not a real array.
        ValueError: if the loss or a metric has the wrong shape, or the loss differs between two calls, or is not finite
            at the start.

    Examples:
        >>> import jax.numpy as jnp, sdelens as sl
        >>> problem = sl.Problem(lambda p: jnp.sum(p["w"] ** 2) + p["b"] ** 4,
        ...                      start={"w": jnp.ones(3), "b": jnp.array(2.0)}, infimum=0.0)
        >>> problem.dim
        4
    """

    start: Array
    data: Any
    _loss: Callable[..., Array] = eqx.field(static=True)
    _layout: Layout = eqx.field(static=True)
    _infimum: Untraced = eqx.field(static=True)
    _metrics: tuple[tuple[str, Callable[..., Array]], ...] = eqx.field(static=True)
    _precision: str | None = eqx.field(static=True)
    _description: Untraced = eqx.field(static=True)

    def __init__(
        self,
        loss: Callable[..., Array],
        start: Any,
        data: Any = None,
        *,
        infimum: float | None = None,
        metrics: Mapping[str, Callable[..., Array]] | None = None,
        gradient_dtype: str | None = None,
        _description: dict[str, Any] | None = None,
    ) -> None:
        if not callable(loss):
            raise TypeError(f"loss: got {loss!r}; give a function loss(params) or loss(params, data).")
        self.start, self._layout = flatten_parameters(start)
        self.data = None if data is None else _as_data(data)
        self._loss = loss
        self._infimum = Untraced(None if infimum is None else check.number("infimum", infimum))
        self._metrics = _as_metrics({} if metrics is None else metrics)
        self._precision = None
        if gradient_dtype is not None:
            self._precision = check.float_dtype("gradient_dtype", gradient_dtype, DTYPES)
        name = getattr(loss, "__qualname__", type(loss).__name__)
        described = _description or {
            "name": "custom",
            "loss": name,
            "fingerprint": fingerprint(loss, self.start, self.data),
            "rerunnable": False,
            **({} if self._precision is None else {"gradient_dtype": self._precision}),
        }
        self._description = Untraced(described)
        if _description is None:  # the library's losses are checked for this by its tests
            check_loss(self)
            for label, function in self._metrics:
                check_metric(self, label, function)

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def infimum(self) -> float | None:
        found: float | None = self._infimum.value
        return found

    @property
    def expensive_gradient(self) -> bool:
        return True

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._metrics)

    def metric(self, name: str, x: Array) -> Array:
        if not self._metrics:
            return super().metric(name, x)
        function = dict(self._metrics)[check.choice("metric", name, self.metrics)]
        return self._per_path(lambda x: self._mean(function, self._layout.unravel(x)), x)

    def loss(self, x: Array) -> Array:
        return self._per_path(lambda x: self._mean(self._loss, self._layout.unravel(x)), x)

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        if self._precision is None:
            return self._per_path(lambda x: self._value_and_grad(lambda params: self._mean(self._loss, params), x), x)
        # The loss keeps its full precision; where it is not used, its separate loop over paths is not run. The sum is
        # differentiated, not the mean, because low precision would round the factor 1/n.
        data, count = () if self.data is None else (self.data,), self.examples or 1
        return self.loss(x), self._per_path(lambda x: self._gradient(self._total, x, *data) / count, x)

    def describe(self) -> dict[str, Any]:
        return dict(self._description.value)

    @property
    def examples(self) -> int | None:
        """Number of examples n, None without data."""
        return None if self.data is None else int(np.shape(jax.tree.leaves(self.data)[0])[0])

    def batch_gradient(self, x: Array, index: Array) -> Array:
        """Mean gradient of the examples `index`: x of shape (d,) or (d, P) with indices of shape (B,) or (B, P)."""

        def one(x: Array, index: Array) -> Array:
            batch = jax.tree.map(lambda a: a[index], self.data)
            return self._gradient(self._total, x, batch) / index.shape[0]

        return self._per_path(one, x, index)

    def weighted_gradient(self, x: Array, weights: Array, index: Array | None = None) -> Array:
        """∇ Σᵢ wᵢ ℓᵢ(x) by one backward pass: x of shape (d,) or (d, P) with weights of shape (n,) or (n, P).

        With `index`, of the shape of `weights`, the sum is over these examples.
        """

        def one(x: Array, weights: Array, *index: Array) -> Array:
            data = jax.tree.map(lambda a: a[index[0]], self.data) if index else self.data
            return self._gradient(lambda params, data: jnp.dot(weights, self._loss(params, data)), x, data)

        return self._per_path(one, x, weights, *([] if index is None else [index]))

    def gradient_norms(self, x: Array, index: Array | None = None) -> Array:
        """Norms ‖∇ℓᵢ(x)‖ of the gradients of the examples `index`, by default of all: shape (m,) or (m, P)."""
        index, chunk = self._chunked(x, index)
        count = index.shape[0]

        def one(x: Array, index: Array) -> Array:
            own = self._own_gradient(x)

            def norms(index: Array) -> Array:
                leaves = jax.tree.leaves(jax.vmap(own)(index))
                squares = [jnp.square(g.reshape(chunk, -1).astype(x.dtype)).sum(axis=1) for g in leaves]
                square = jnp.sum(jnp.stack(squares), axis=0)
                return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # √0 has no derivative

            return lax.map(norms, jnp.pad(index, (0, -count % chunk)).reshape(-1, chunk)).ravel()[:count]

        return self._per_path(one, x, index)

    def gradient_means(
        self,
        x: Array,
        statistics: tuple[Callable[..., Array], ...],
        index: Array | None = None,
        others: tuple[Array, ...] = (),
        weights: Array | None = None,
    ) -> tuple[Array, ...]:
        """Means over examples of element-wise functions of their gradients, which are computed in chunks.

        Args:
            x: shape (d,) or (d, P).
            statistics: element-wise functions u of the gradients and of `others`.
            index: indices of the examples, shape (m,), or (m, P) if they differ by path; by default all examples.
            others: further arguments of the functions, one number per coordinate, of the shape of x.
            weights: weights wᵢ of the examples in place of 1/m, of the shape of `index`.

        Returns:
            For every function (1/m) Σᵢ u(∇ℓᵢ(x), …) or Σᵢ wᵢ u(∇ℓᵢ(x), …), of the shape of x.
        """
        index, chunk = self._chunked(x, index)
        count = index.shape[0]
        padding = -count % chunk

        weights = jnp.full(index.shape, 1 / count, x.dtype) if weights is None else weights

        def one(x: Array, index: Array, weights: Array, *others: Array) -> tuple[Array, ...]:
            beside = tuple(eqx.filter(self._layout.unravel(a), eqx.is_array) for a in others)
            chunks, shares = (jnp.pad(a, (0, padding)).reshape(-1, chunk) for a in (index, weights))
            own = self._own_gradient(x)

            def mean(share: Array, values: Array) -> Array:
                # A product with the shares, since XLA's sum over a leading axis is scalar code on a CPU.
                flat = values.reshape(chunk, -1).astype(x.dtype)
                return jnp.matmul(share, flat, precision="highest").reshape(values.shape[1:])

            def add(totals: tuple[Array, ...], part: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
                index, share = part
                gradients = jax.vmap(own)(index)
                means = (
                    self._layout.ravel(
                        jax.tree.map(lambda g, *o, u=u: mean(share, u(g.astype(x.dtype), *o)), gradients, *beside)
                    )
                    for u in statistics
                )
                return tuple(t + m for t, m in zip(totals, means, strict=True)), None

            return lax.scan(add, (jnp.zeros_like(x),) * len(statistics), (chunks, shares))[0]

        return tuple(self._per_path(one, x, index, weights, *others))

    def _chunked(self, x: Array, index: Array | None) -> tuple[Array, int]:
        """Indices of examples, one column per path, and the number whose gradients are computed at a time."""
        if index is None:
            assert self.examples is not None
            index = jnp.arange(self.examples)
            index = index if x.ndim == 1 else jnp.broadcast_to(index[:, None], (index.shape[0], x.shape[1]))
        abreast = 1 if x.ndim == 1 or _one_by_one() else x.shape[1]
        fitting = EXAMPLE_BYTES // (x.dtype.itemsize * x.shape[0] * abreast)
        return index, int(min(max(fitting, 1), index.shape[0]))

    def _own_gradient(self, x: Array) -> Callable[[Array], Any]:
        """The gradient of one example's loss at one path's x, as a function of its index."""
        arrays, rest = eqx.partition(self._cast(self._layout.unravel(x)), eqx.is_array)

        def own(index: Array) -> Any:
            example = self._cast(jax.tree.map(lambda a: a[index][None], self.data))
            return jax.grad(lambda arrays: self._loss(eqx.combine(arrays, rest), example)[0])(arrays)

        return own

    def check_examples(self) -> None:
        """Refuse a user's loss whose value for an example depends on other examples or on its position.

        Raises:
            ValueError: if it does; the message says what to do.
        """
        if self.examples is not None and self._description.value["name"] == "custom":
            check_examples(self, self.examples)

    def _total(self, *arguments: Any) -> Array:
        return jnp.sum(self._loss(*arguments))

    def _gradient(self, function: Callable[..., Array], x: Array, *data: Any) -> Array:
        """Gradient at one path's x of a function of the parameters and data, in the precision of gradients."""
        return self._value_and_grad(function, x, *data)[1]

    def _value_and_grad(self, function: Callable[..., Array], x: Array, *data: Any) -> tuple[Array, Array]:
        """Differentiate with respect to the leaves, and join their gradients.

        Differentiating through slices of the flat vector would pad every leaf's gradient to d numbers and add these
        (measured 1.2 times slower for the networks, 7 times for single examples).
        """
        arrays, rest = eqx.partition(self._cast(self._layout.unravel(x)), eqx.is_array)
        data = tuple(self._cast(part) for part in data)
        value, grads = jax.value_and_grad(lambda arrays: function(eqx.combine(arrays, rest), *data))(arrays)
        return value, self._layout.ravel(grads).astype(x.dtype)

    def _cast(self, tree: Any) -> Any:
        """The tree with floating arrays in the precision of gradients, if it differs from that of the parameters."""
        if self._precision is None:
            return tree
        return jax.tree.map(
            lambda a: a.astype(self._precision) if eqx.is_inexact_array(a) else a, tree, is_leaf=lambda a: a is None
        )

    def _mean(self, function: Callable[..., Array], params: Any) -> Array:
        """The loss or a metric at a pytree of parameters, averaged over the examples if there are data."""
        return function(params) if self.data is None else jnp.mean(function(params, self.data))

    def _per_path(self, function: Callable[..., Any], x: Array, *others: Array) -> Any:
        """Apply a function of one path's x and other arrays to every path; paths last."""
        if x.ndim == 1:
            return function(x, *others)
        paths = tuple(jnp.moveaxis(a, -1, 0) for a in (x, *others))
        # One path after another keeps a network's activations in a CPU core's cache (measured 1.4 times faster than
        # vmap on the Breast-Cancer MLP); accelerators are faster with the whole batch at once.
        out = lax.map(lambda own: function(*own), paths) if _one_by_one() else jax.vmap(function)(*paths)
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -1), out)


def _one_by_one() -> bool:
    return jax.default_backend() == "cpu"


def _as_data(data: Any) -> Any:
    """Data as arrays that are not tied to a device."""
    try:
        return jax.tree.map(lambda a: jax.device_put(np.array(a)), data)  # a copy: device_put can share memory
    except TypeError as error:
        raise TypeError(f"data: cannot be converted to arrays ({error}); give a pytree of numeric arrays.") from error


def _as_metrics(metrics: Mapping[str, Callable[..., Array]]) -> tuple[tuple[str, Callable[..., Array]], ...]:
    """Names and functions of the metrics, checked."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: got {type(metrics).__name__}; give a dictionary from names to functions.")
    for name, function in metrics.items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(f"metrics: got {name!r}: {function!r}; give a dictionary from names to functions.")
    return tuple(metrics.items())
