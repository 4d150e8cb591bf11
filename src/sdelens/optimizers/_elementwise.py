"""Whether an optax update is coordinate-wise, by following the coordinates through its jaxpr."""

import math
from typing import Any, Final, NamedTuple

import jax
import optax
from jax.interpreters.partial_eval import dce_jaxpr

__all__ = ["QUERIED", "Update", "update_of"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SMOOTH: Final = _names(
    "add add_any sub mul neg integer_pow square exp exp2 tanh logistic erf sin cos copy convert_element_type "
    "reduce_precision"
)
"""Operations on single numbers whose derivatives are of the size of their values."""
_SINGLE: Final = _SMOOTH | _names(
    "abs acos acosh and asin asinh atan atan2 atanh cbrt ceil clamp cosh digamma div eq erf_inv erfc expm1 floor ge gt "
    "is_finite le lgamma log log1p lt max min ne nextafter not or pow rem round rsqrt select_n sign sinh sqrt tan xor"
)
_SHAPES: Final = _names("reshape squeeze expand_dims broadcast_in_dim")
"""Operations that keep the order of the numbers whenever they keep how many there are."""
_CALLS: Final = _names(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr remat checkpoint"
)


class Update(NamedTuple):
    """How an update treats the coordinates.

    Attributes:
        coupling: the operation that couples coordinates, None if the update is coordinate-wise.
        owners: for each leaf of the optax state, the leaf of the parameters to whose coordinates its entries correspond
            one to one; None if it depends on no coordinate.
        sizes: numbers of coordinates of the leaves of the parameters.
        smooth: whether the new state is a smooth function of the gradient, judged by its operations.
    """

    coupling: str | None
    owners: tuple[int | None, ...]
    sizes: tuple[int, ...]
    smooth: bool


QUERIED: Final = Update("gradients at other points of the same draw", (), (), False)
"""Of an update that asks for gradients at other points: each of them depends on all coordinates."""


class _CoupledError(Exception):
    """Raised with the name of the operation that couples coordinates."""


def update_of(transformation: optax.GradientTransformation, parameters: Any) -> Update:
    """How a transformation's update treats the coordinates of such parameters (shapes and dtypes suffice)."""

    def update(gradient: Any, state: Any, x: Any) -> Any:
        updates, state = transformation.update(gradient, state, x)
        return optax.apply_updates(x, updates), state

    state = jax.eval_shape(transformation.init, parameters)
    traced = jax.make_jaxpr(update)(parameters, state, parameters).jaxpr
    # A value that nothing uses couples nothing.
    jaxpr, _ = dce_jaxpr(traced, [True] * len(traced.outvars), instantiate=True)
    sizes = tuple(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))
    own = list(range(len(sizes)))
    owners: list[int | None] = [None] * len(jax.tree.leaves(state))
    used: set[str] = set()
    try:
        while True:  # each pass finds the leaves of the state that one more update reaches
            out = _walk(jaxpr, [*own, *owners, *own], used)
            new, found = out[: len(own)], out[len(own) :]
            for theirs, ours in zip(new, own, strict=True):
                _join("an exchange of values", [theirs, ours])
            joined = [_join("an exchange of state", pair) for pair in zip(owners, found, strict=True)]
            if joined == owners:
                return Update(None, tuple(owners), sizes, used <= _SMOOTH)
            owners = joined
    except _CoupledError as error:
        return Update(str(error), tuple(owners), sizes, False)


def _walk(jaxpr: Any, owners: list[int | None], used: set[str]) -> list[int | None]:
    """Owners of the outputs of a jaxpr from those of its inputs."""
    known: dict[Any, int | None] = dict(zip(jaxpr.invars, owners, strict=True))

    def owner(variable: Any) -> int | None:
        return None if hasattr(variable, "val") else known.get(variable)  # literals, constants

    for equation in jaxpr.eqns:
        given = [owner(v) for v in equation.invars]
        found = _through(equation, given, used) if any(i is not None for i in given) else [None] * len(equation.outvars)
        known |= dict(zip(equation.outvars, found, strict=True))
    return [owner(v) for v in jaxpr.outvars]


def _through(equation: Any, given: list[int | None], used: set[str]) -> list[int | None]:
    """Owners of the outputs of one operation, an input of which has an owner."""
    name = equation.primitive.name
    if name in _CALLS:
        inner = next(equation.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in equation.params)
        return _walk(getattr(inner, "jaxpr", inner), given, used)
    if name == "cond":
        branches = [_walk(branch.jaxpr, given[1:], used) for branch in equation.params["branches"]]
        if given[0] is not None:
            used.add("select_n")
        return [_join(name, [given[0], *outs]) for outs in zip(*branches, strict=True)]
    if name not in _SINGLE | _SHAPES:
        raise _CoupledError(name)
    size = equation.outvars[0].aval.size
    if any(i is not None and v.aval.size != size for i, v in zip(given, equation.invars, strict=True)):
        raise _CoupledError(name)
    if name in _SINGLE:
        used.add(name)
    if name == "integer_pow" and equation.params["y"] < 0:
        used.add("div")
    return [_join(name, given)] * len(equation.outvars)


def _join(name: str, owners: Any) -> int | None:
    """The only owner among several, or None if there is none."""
    different = {i for i in owners if i is not None}
    if len(different) > 1:
        raise _CoupledError(f"{name} between different parameters")
    return different.pop() if different else None
