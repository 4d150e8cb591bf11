"""The interface of a problem, and `Problem` for a user's loss function."""

import abc
import zlib
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from types import CodeType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import jaxpr_as_fun

from sdelens.core import check
from sdelens.core.captured import Untraced, alike, captured
from sdelens.core.compilation import program, quick
from sdelens.core.names import DTYPES
from sdelens.core.tree import Layout, flatten_parameters, sum_coordinates

__all__ = ["EXAMPLE_BYTES", "AbstractProblem", "L2Problem", "Problem"]

EXAMPLE_BYTES = 2**22
"""Size in bytes of the chunks in which per-example gradients are computed."""


class AbstractProblem(eqx.Module):
    """A loss f of d parameters, a start, and the infimum if it is known.

    In all methods a path's parameters are one flat vector x of shape (d,), and those of many paths are an array of
    shape (d, P), paths last; `loss` and `evaluate` accept both.
    """

    start: eqx.AbstractVar[Array]
    """Flat start, shape (d,)."""

    @property
    def dim(self) -> int:
        """Number of parameters d."""
        return int(self.start.shape[0])

    @property
    def infimum(self) -> float | None:
        """The infimum of the loss where it is known, else None; errors are measured relative to it."""
        return None

    @property
    @abc.abstractmethod
    def layout(self) -> Layout:
        """How the d coordinates lie in the user's pytree of parameters."""

    @abc.abstractmethod
    def loss(self, x: Array) -> Array:
        """f(x): shape () for x of shape (d,), shape (P,) for x of shape (d, P)."""

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """f(x) and ∇f(x), the gradient in the shape of x."""

        def total(x: Array) -> tuple[Array, Array]:
            loss = self.loss(x)
            return loss.sum(), loss

        (_, loss), grad = jax.value_and_grad(total, has_aux=True)(x)
        return loss, grad

    @property
    def expensive_gradient(self) -> bool:
        """Whether evaluating f and ∇f dominates the cost of a step, as for a function or a network."""
        return False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the quantities that `metric` measures besides the loss."""
        return ()

    def metric(self, name: str, x: Array) -> Array:
        """The metric of that name at x: shape () for x of shape (d,), shape (P,) for x of shape (d, P).

        Raises:
            ValueError: if the problem has no metric of that name; the message lists the available ones.
        """
        raise ValueError(
            f"metric: got {name!r}, but this problem has no such metric; give sl.Problem(..., metrics={{{name!r}: "
            "function})."
        )

    def with_l2(self, strength: float) -> "AbstractProblem":
        """The problem with loss f(x) + ½ strength ‖x‖²: weight decay in the loss and thus in every gradient.

        With Adam it differs from the optimizer's decoupled `weight_decay`, since it is divided by √v too.

        Raises:
            ValueError, TypeError: if `strength` is not a number of 0 or greater.
        """
        return L2Problem(self, check.nonnegative("strength", strength))

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is needed to rebuild the problem, JSON types only; ``rerunnable`` is False if it cannot be rebuilt."""


class L2Problem(AbstractProblem):
    """f(x) + ½ strength ‖x‖²; its infimum is not known."""

    problem: AbstractProblem
    strength: float
    start: Array

    def __init__(self, problem: AbstractProblem, strength: float) -> None:
        self.problem, self.strength, self.start = problem, strength, problem.start

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    @property
    def expensive_gradient(self) -> bool:
        return self.problem.expensive_gradient

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.problem.metrics

    def metric(self, name: str, x: Array) -> Array:
        return self.problem.metric(name, x)

    def loss(self, x: Array) -> Array:
        return self.problem.loss(x) + 0.5 * self.strength * sum_coordinates(x * x)

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        loss, grad = self.problem.evaluate(x)
        return loss + 0.5 * self.strength * sum_coordinates(x * x), grad + self.strength * x

    def describe(self) -> dict[str, Any]:
        return {**self.problem.describe(), "l2": float(self.strength)}


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
            "fingerprint": _fingerprint(loss, self.start, self.data),
            "rerunnable": False,
            **({} if self._precision is None else {"gradient_dtype": self._precision}),
        }
        self._description = Untraced(described)
        if _description is None:  # the library's losses are checked for this by its tests
            _check_loss(self)
            for label, function in self._metrics:
                _check_metric(self, label, function)

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
        count = self.examples
        if count is None or self._description.value["name"] != "custom":
            return
        # Dependence on the other examples may vanish at a special start, such as 0.
        step = np.random.default_rng(0).standard_normal(self.dim)
        moved = self.start + jnp.asarray(0.1 * (1 + np.abs(np.asarray(self.start))) * step, self.start.dtype)
        try:
            found = [_of_parts(alike(self), x, captured(self)) for x in (self.start, moved)]
            fits = all(
                own.shape == whole[part].shape and np.allclose(own, whole[part], rtol=1e-3, atol=1e-5, equal_nan=True)
                for whole, owns in found
                for own, part in zip(owns, _slices(count), strict=True)
            )
        except (TypeError, ValueError, IndexError):
            fits = False
        if not fits:
            raise ValueError(
                "loss: the loss of an example changes when the function is called with fewer examples, so "
                "mini-batches are not defined. It must depend on that example alone: pass per-example arrays "
                "(weights, targets) as part of `data`, and do not average over examples."
            )

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
        return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), data)
    except TypeError as error:
        raise TypeError(f"data: cannot be converted to arrays ({error}); give a pytree of numeric arrays.") from error


def _fingerprint(loss: Callable[..., Array], *arrays: Any) -> str:
    """Eight hex digits that change with the loss's code, the start and the data, to distinguish runs."""
    code = getattr(loss, "__code__", None)
    parts = [b"" if code is None else _code_bytes(code)]
    parts += [np.asarray(a).tobytes() for a in jax.tree.leaves(arrays)]
    return f"{zlib.crc32(b''.join(parts)):08x}"


def _code_bytes(code: CodeType) -> bytes:
    """A function's code and constants, the same in every process: no addresses of nested functions, sorted sets."""
    parts = [code.co_code]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts.append(_code_bytes(constant))
        else:
            parts.append(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant).encode())
    return b"".join(parts)


def _check_loss(problem: Problem) -> None:
    """Evaluate the loss and its gradient at the start, and refuse a loss that cannot be simulated."""
    data = () if problem.data is None else (problem.data,)

    def traced(x: Array, *data: Any) -> Array:
        found = problem._loss(problem.layout.unravel(x), *data)
        try:
            return jnp.asarray(found)
        except TypeError as error:
            raise _NotAnArrayError(type(found).__name__) from error

    try:
        # JAX remembers the trace of a function; a new object each time is traced again.
        first, second = (jax.make_jaxpr(partial(traced))(problem.start, *data) for _ in range(2))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            "loss: cannot be compiled, because it converts a traced array to a Python or NumPy value. Use jax.numpy "
            "instead of NumPy, and jnp.where or lax.cond instead of `if`."
        ) from error
    except _NotAnArrayError as error:
        raise TypeError(f"loss: returned {error}; return a real JAX array.") from error
    except TypeError as error:
        call = "loss(params)" if problem.data is None else "loss(params, data)"
        raise TypeError(
            f"loss: the call {call} fails ({error}); give a function that can be called in this way."
        ) from error
    _check_returned(problem, *first.out_avals)
    values, grad = (np.asarray(a) for a in _at_start(alike(problem), captured(problem)))
    if not np.isfinite(values).all():
        raise ValueError(
            f"loss: is {values if values.ndim == 0 else 'not finite'} at the start; choose a start where it is finite."
        )
    if problem.infimum is not None and problem.infimum > float(np.mean(values)) * (1 + 1e-6) + 1e-30:
        raise ValueError(
            f"infimum: got {problem.infimum}, which is above the loss {float(np.mean(values)):.6g} at the start; give "
            "a lower bound of the loss, or None."
        )
    if _differ(first, second, (problem.start, *data)):
        raise ValueError(
            "loss: two calls at the start return different values, so it is random. Switch dropout and batch "
            "normalisation to evaluation mode; add noise through the `noise` argument instead."
        )
    if not np.isfinite(grad).all():
        raise ValueError(
            "loss: its gradient is not finite at the start; choose a start where the loss is differentiable."
        )


def _check_returned(problem: Problem, out: Any) -> None:
    """Refuse a dtype or a shape that the values of a loss cannot have."""
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"loss: returned {out.dtype}; return a real floating value.")
    if problem.data is None:
        if out.shape != ():
            raise ValueError(
                f"loss: returned shape {out.shape} at the start; return a scalar (sum or average it), or give "
                "`data` and return one loss for each example."
            )
    else:
        sizes = {int(np.shape(leaf)[0]) if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(problem.data)}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"data: leaves have first axes {sorted(sizes)}; the first axis of every leaf must be the number of "
                "examples."
            )
        if out.shape != (n := sizes.pop(),):
            raise ValueError(
                f"loss: returned shape {out.shape} for {n} examples; return one loss for each example, with shape "
                f"({n},)."
            )


class _NotAnArrayError(TypeError):
    """A function returned something else than numbers."""


@program(static_argnames="captured")
def _at_start(problem: Problem, captured: Hashable) -> tuple[Array, Array]:
    """The loss, for every example if there are data, and its gradient at the start."""
    data = () if problem.data is None else (problem.data,)
    loss = jnp.asarray(problem._loss(problem.layout.unravel(problem.start), *data))
    return loss, problem.evaluate(problem.start)[1]


def _slices(count: int) -> tuple[slice, ...]:
    """Some of the examples: the first one, the last one, and every second one."""
    return slice(0, 1), slice(count - 1, count), slice(0, count, 2)


@program(static_argnames="captured")
def _of_parts(problem: Problem, x: Array, captured: Hashable) -> tuple[Array, list[Array]]:
    """The losses of all examples at x, and those that the loss function returns for some of the examples alone."""
    params, parts = problem.layout.unravel(x), _slices(problem.examples or 0)
    own = [problem._loss(params, jax.tree.map(lambda a, part=part: a[part], problem.data)) for part in parts]
    return problem._loss(params, problem.data), own


def _differ(first: Any, second: Any, arguments: Any) -> bool:
    """Whether two traces of one function compute different values."""
    same = len(first.consts) == len(second.consts) and str(first.jaxpr) == str(second.jaxpr)
    if same and all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first.consts, second.consts, strict=True)):
        return False
    values = [quick(jaxpr_as_fun(traced))(*jax.tree.leaves(arguments)) for traced in (first, second)]
    return not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*values, strict=True))


def _as_metrics(metrics: Mapping[str, Callable[..., Array]]) -> tuple[tuple[str, Callable[..., Array]], ...]:
    """Names and functions of the metrics, checked."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: got {type(metrics).__name__}; give a dictionary from names to functions.")
    for name, function in metrics.items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(f"metrics: got {name!r}: {function!r}; give a dictionary from names to functions.")
    return tuple(metrics.items())


def _check_metric(problem: Problem, name: str, function: Callable[..., Array]) -> None:
    """Refuse a metric that does not return real numbers in the loss's shape."""
    label = f"metrics[{name!r}]"
    data = () if problem.data is None else (problem.data,)
    try:
        found, expected = (
            jax.eval_shape(lambda x, f=f: f(problem.layout.unravel(x), *data), problem.start)
            for f in (function, problem._loss)
        )
        shape, dtype = found.shape, found.dtype
    except (TypeError, AttributeError) as error:
        call = "function(params)" if problem.data is None else "function(params, data)"
        raise TypeError(
            f"{label}: the call {call} fails ({error}); give a function that can be called in this way and returns a "
            "real JAX array."
        ) from error
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype.kind == "b"):
        raise TypeError(f"{label}: returned {dtype}; return real numbers.")
    if shape != expected.shape:
        raise ValueError(f"{label}: returned shape {shape}; return the same shape as the loss, {expected.shape}.")
