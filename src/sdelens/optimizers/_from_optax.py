"""Any optax transformation as an optimizer specification."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.core.tree import Layout, over_paths
from sdelens.optimizers._accumulators import Leaf, leaves_of
from sdelens.optimizers._base import Optimizer, Query, State, number
from sdelens.optimizers._elementwise import QUERIED, Update, update_of
from sdelens.optimizers._query_functions import (
    QUERIES,
    asked_functions,
    of_one_path,
    query_functions,
    traceable,
)
from sdelens.optimizers._state_parts import parts_of

__all__ = ["FromOptax"]


_FACTORISATIONS = {"cholesky", "eig", "eigh", "geqrf", "householder_product", "hessenberg", "lu", "qr", "schur", "svd"}


class FromOptax(Optimizer):
    r"""Any optax transformation: an optimizer whose SDE has coefficients computed from its update.

    With y = (x, optax state) and one update y ← y + D(y, g), the SDE is

    dY = E[D]/η dt + (Cov D/η)^{1/2} dW,

    for all floating-point parts of the state: ``model="empirical"`` (`sdelens.integrate.Empirical`).

    If the update calls them, it receives functions of the parameters for the same mini-batch or draw of the noise:
    ``grad_fn(params, …)``, the stochastic gradient there (as ``optax.contrib.sam(..., opaque_mode=True)`` asks for it),
    and ``obj_fn(params)``, whose gradient is that stochastic gradient (as ``optax.contrib.sophia`` asks for it to
    estimate curvature); its value is NaN, because injected noise has no loss. Further arguments are ignored.

    Args:
        transformation: an optax gradient transformation, including its learning rate: ``optax.lion(1e-3)``, a chain
            with schedules, clipping or masks, or ``optax.MultiSteps``. Or a function from lr to a transformation, such
            as ``optax.lion``: it makes `at_lr` available, which studies of the weak order use, and decides what else
            depends on lr, for example β = 1 − ρ lr.
        lr: η > 0, the unit of time t = kη. It is not read from the transformation.
        positive: parts of the state that are never negative, in addition to those of optax's states: names of fields,
            keys of dictionaries, or whole paths such as ``"[0]['v']"``; their noise keeps the sign.
        name: its name in tables, by default the function's name, or ``"transformation"``.

    Raises:
        TypeError: if it is not a transformation.
        ValueError: when it is used with a problem: if its update needs more than parameters, gradient and these
            functions (such as ``value=``), or its state has a leaf that an SDE cannot have; the message names it.

    Examples:
        >>> import optax
        >>> import sdelens as sl
        >>> sl.FromOptax(optax.lion, lr=1e-3).name
        'lion'
    """

    label: str = eqx.field(static=True)
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    transformation: Any = eqx.field(static=True)
    factory: Callable[[float], Any] | None = eqx.field(static=True)
    positive: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        transformation: Any,
        lr: float,
        positive: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        self.lr = check.positive("lr", lr)
        self.factory = None
        if not _is_transformation(transformation):
            if not callable(transformation):
                raise TypeError(
                    f"transformation: got {type(transformation).__name__}; give an optax transformation, for example "
                    "optax.lion(1e-3), or a function from lr to one, for example optax.lion."
                )
            self.factory = transformation
            try:
                transformation = transformation(self.lr)
            except Exception as error:
                raise TypeError(
                    f"transformation: the function fails when it is called with lr = {lr:g} ({error}); give a "
                    "function from lr to an optax transformation, for example optax.lion."
                ) from error
            if not _is_transformation(transformation):
                raise TypeError(
                    f"transformation: the function returned {type(transformation).__name__} for lr = {lr:g}; it must "
                    "return an optax transformation."
                )
        self.transformation = transformation
        if isinstance(positive, str):
            raise TypeError(f"positive: got the text {positive!r}; give a list, for example [{positive!r}].")
        self.positive = tuple(positive)
        own = getattr(self.factory, "__name__", "<lambda>")
        self.label = str(name) if name is not None else "transformation" if own == "<lambda>" else own

    @property
    def name(self) -> str:
        return self.label

    def to_optax(self) -> optax.GradientTransformation:
        return self.transformation

    def initial_state(self, problem: Any, noise: Any, x: Array) -> State:
        return State(x)

    def at_lr(self, lr: float) -> "FromOptax":
        """The optimizer that the given function returns at another learning rate.

        Raises:
            ValueError: if a transformation was given rather than a function.
        """
        if self.factory is None:
            raise ValueError(
                f"lr: {self.name} was built from a transformation with a fixed learning rate, which cannot be "
                "changed; build FromOptax from a function of lr, for example lambda lr: optax.rmsprop(lr, decay=1 - "
                "5 * lr)."
            )
        return FromOptax(self.factory, lr, self.positive, self.name)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "lr": float(self.lr), "optax": True, "rerunnable": False}

    def begin(self, state: State, layout: Layout, stream: Stream) -> tuple[Array, ...]:
        """The leaves of the optax state, each flat: (n,), or (n, P) where paths differ."""
        leaves = self.leaves(layout)

        def one(x: Array) -> list[Array]:
            return [_data(leaf).ravel() for leaf in jax.tree.leaves(self.transformation.init(_parameters(layout, x)))]

        flat = one(state.x) if state.x.ndim == 1 else jax.vmap(one, in_axes=-1, out_axes=-1)(state.x)
        paths = stream.paths

        def of_paths(leaf: Leaf, value: Array) -> Array:
            wide = over_paths(value, paths.shape[0])
            return jax.vmap(partial(_folded, leaf), in_axes=-1, out_axes=-1)(wide, paths)

        return tuple(
            of_paths(leaf, value) if leaf.law == "key" else value for leaf, value in zip(leaves, flat, strict=True)
        )

    def rekeyed(self, inner: Any, number: Array, layout: Layout) -> Any:
        def fold(leaf: Leaf, value: Array) -> Array:
            return jax.vmap(lambda data: _folded(leaf, data, number), in_axes=-1, out_axes=-1)(value)

        return tuple(
            fold(leaf, value) if leaf.law == "key" else value
            for leaf, value in zip(self.leaves(layout), inner, strict=True)
        )

    def advance(self, x: Array, inner: Any, gradient: Array, layout: Layout) -> tuple[Array, Any]:
        return self._updated(x, inner, gradient, layout, None)

    def queries(self, layout: Layout) -> bool:
        return super().queries(layout) or bool(self._asked(layout))

    def step(self, x: Array, inner: Any, gradient: Array, query: Query, layout: Layout) -> tuple[Array, Any]:
        return self._updated(x, inner, self.queried(x, inner, gradient, query), layout, query)

    def _updated(
        self, x: Array, inner: Any, gradient: Array, layout: Layout, query: Query | None
    ) -> tuple[Array, tuple[Array, ...]]:
        leaves, treedef = self._template(layout)
        names, wide = () if query is None else self._asked(layout), x.shape[-1]

        def one(x: Array, own: tuple[Array, ...], gradient: Array) -> tuple[Array, tuple[Array, ...]]:
            parameters = _parameters(layout, x)
            state = jax.tree.unflatten(treedef, [_shaped(a, leaf) for a, leaf in zip(own, leaves, strict=True)])
            asked = {}
            if query is not None and names:
                own_query = of_one_path(query, wide)
                functions = query_functions(lambda p: _parameters(layout, own_query(layout.ravel(p).astype(x.dtype))))
                asked = {name: functions[name] for name in names}
            updates, state = self.transformation.update(_parameters(layout, gradient), state, parameters, **asked)
            new = layout.ravel(optax.apply_updates(parameters, updates)).astype(x.dtype)
            kept = jax.tree.leaves(state)
            return new, tuple(
                _data(a).ravel().astype(b.dtype) if leaf.law != "key" else _data(a).ravel()
                for a, b, leaf in zip(kept, own, leaves, strict=True)
            )

        return jax.vmap(one, in_axes=-1, out_axes=-1)(x, inner, gradient)

    def parts(self, x: Array, inner: Any, layout: Layout) -> dict[str, Array]:
        """The floating leaves of the optax state by the names of their fields; those like the parameters as one.

        A name that occurs twice is preceded by its place in the state, as in ``"0.mu"``. For `schedule_free`,
        ``"evaluation"`` is the point (x − (1 − β₁)z)/β₁ at which it is evaluated.
        """
        parameters = _shapes(layout)
        return parts_of(jax.eval_shape(self.transformation.init, parameters), parameters, x, inner)

    def leaf_kinds(self, inner: Any, layout: Layout) -> tuple[str, ...]:
        return tuple(leaf.law for leaf in self.leaves(layout))

    def leaves(self, layout: Layout) -> list[Leaf]:
        """The leaves of the optax state of one path."""
        return self._template(layout)[0]

    def update_on(self, layout: Layout, dtype: Any) -> Update:
        return QUERIED if self.queries(layout) else update_of(self.transformation, _shapes(layout))

    def factorisations(self, layout: Layout) -> set[str]:
        """Names of the matrix factorisations (of LAPACK) that an update calls."""
        parameters = _shapes(layout)
        state = jax.eval_shape(self.transformation.init, parameters)
        update = traceable(self.transformation, self._asked(layout))
        traced = jax.make_jaxpr(update)(parameters, state, parameters)
        return _FACTORISATIONS & set(_primitives(traced))

    def check(self, layout: Layout) -> None:
        """Trace one update without computing it.

        Raises:
            ValueError: if it cannot be run, the state has a leaf of unknown kind, or a name in `positive` does not
                occur in the state.
        """
        leaves, treedef = self._template(layout)
        parameters = _shapes(layout)
        state = jax.eval_shape(self.transformation.init, parameters)
        try:
            update = traceable(self.transformation, self._asked(layout))
            new = jax.eval_shape(update, parameters, state, parameters)[1]
        except Exception as error:
            raise ValueError(
                f"transformation: an update of {self.name} with gradient, state and parameters fails ({error}); of "
                f"further inputs only {' and '.join(QUERIES)} are supported, not, for example, the loss (value=)."
            ) from error
        if jax.tree.structure(new) != treedef or [(a.shape, a.dtype) for a in jax.tree.leaves(new)] != [
            (leaf.shape, leaf.dtype) for leaf in leaves
        ]:
            raise ValueError(
                f"transformation: an update of {self.name} changes the structure, a shape or a dtype of its state, "
                "so it cannot be run in a loop; return a state like the initial one."
            )
        known = {name for leaf in leaves for _, name in leaf.fields} | {leaf.path for leaf in leaves}
        for name in self.positive:
            check.choice("positive", name, sorted(known))

    def _asked(self, layout: Layout) -> tuple[str, ...]:
        """Names of the functions, among `QUERIES`, that an update calls."""
        return asked_functions(self.transformation, _shapes(layout))

    def _template(self, layout: Layout) -> tuple[list[Leaf], Any]:
        """The leaves of the optax state of one path, and its structure."""
        try:
            state = jax.eval_shape(self.transformation.init, _shapes(layout))
        except Exception as error:
            raise ValueError(
                f"transformation: {self.name} cannot be initialised with the problem's parameters ({error}); give a "
                "transformation that accepts them."
            ) from error
        return leaves_of(state, self.positive), jax.tree.structure(state)


def _is_transformation(value: Any) -> bool:
    """Whether `value` has the methods of an optax transformation and is not a class."""
    return not isinstance(value, type) and all(callable(getattr(value, part, None)) for part in ("init", "update"))


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all operations of a traced function, including those of inner functions."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from _primitives(inner)


def _parameters(layout: Layout, flat: Array) -> Any:
    """The pytree of the problem's parameters, None where a leaf is not one."""
    return eqx.filter(layout.unravel(flat), eqx.is_inexact_array)


def _shapes(layout: Layout) -> Any:
    """The pytree of `_parameters` as shapes and dtypes; each leaf keeps its dtype, whatever the flat vector's is."""
    return jax.eval_shape(lambda x: _parameters(layout, x), jax.ShapeDtypeStruct((layout.size,), jnp.float32))


def _data(leaf: Any) -> Array:
    """The numbers of a leaf as an array, also for random keys."""
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _shaped(flat: Array, leaf: Leaf) -> Any:
    """A leaf with the shape and type that it has in the optax state."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = flat.reshape(*leaf.shape, -1)
        return jax.random.wrap_key_data(data, impl=_implementation(leaf.dtype))
    return flat.reshape(leaf.shape)


def _implementation(dtype: Any) -> Any:
    """The generator that keys of a dtype belong to."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct((), dtype))
    return found[0]


def _folded(leaf: Leaf, flat: Array, number: Array) -> Array:
    """The flat data of a leaf's keys, each folded with a number."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        keys = _shaped(flat, leaf)
    else:
        keys = jax.random.wrap_key_data(flat.reshape(leaf.shape))
    each = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys.reshape(-1))
    return jax.random.key_data(each).ravel()
