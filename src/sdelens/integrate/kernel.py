"""Steps between two records as one kernel of a GPU, which keeps the states of its paths in registers.

XLA runs a step of an SDE on a GPU as a few kernels, each of which reads and writes the whole state. If every coordinate
moves by itself, a block of paths of two coordinates can instead take all steps between two records in one kernel,
written with Pallas: it reads the state once and writes it once. Two coordinates, because the generator makes the random
words of two at a time, and because the sizes of Triton's arrays are powers of two.
"""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.extend.core import Literal
from jax.interpreters.partial_eval import dce_jaxpr

from sdelens.core.captured import alike
from sdelens.core.compilation import primitives, quick
from sdelens.core.random import Stream, horner
from sdelens.core.tree import over_paths
from sdelens.integrate._base import Stepper, Wrapper
from sdelens.integrate.discrete import Discrete
from sdelens.integrate.euler import EulerMaruyama

__all__ = ["InKernel", "NoKernelError", "in_kernel"]

_PATHS, _WARPS = 1024, 4
"""Paths of a block at most, and the warps of 32 threads that run it: 16 numbers a thread share the keys of a step. For
RMSprop's SDE this takes 96 registers and 106 instructions per number on an H200, and with half the paths 127."""
_CALLS: Final = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
"""Operations that call a function, and the name of its jaxpr among their parameters."""
_ERF: tuple[float, ...] = (4.0711224e-05, -0.00038102555, 0.00125181948, 0.000205611221)
_ERF += (-0.0193216382, 0.102814382, 0.636616501, 1.12837921)
"""−log(1 − erf t)/t for 0 ≤ t ≤ 4, a polynomial with the highest power first; erf has a relative error of 2e-7."""
_CHECKED: Final = 2
"""Paths and steps of the comparison with the stepper itself."""
_FIRST_STEPS: Final = (0, 1000)
"""From which steps on they are compared."""
_COORDINATES: Final = 10_000
"""Coordinates of the comparison at most. An interpreted kernel runs two after another: 0.3 s for so many."""
_TOLERANCE: Final = 1e-3
"""Difference of two steps, relative to the largest step of a coordinate, that is rounding."""


def _erf(x: Array) -> Array:
    """The error function in float32; it is 1 beyond 4."""
    t = jnp.minimum(jnp.abs(x), 4)
    return -jnp.sign(x) * jnp.expm1(-t * horner(_ERF, t))


_COMBINING: Final = ("reduce_", "arg", "cum", "dot_general", "sort", "top_k", "gather", "scatter")
"""What the names of operations that combine coordinates begin with."""
_LACKING: Final[dict[str, Callable[[Array], Array]]] = {"copy": lambda a: a, "erf": _erf}
"""Operations that Pallas lacks on a GPU, by other operations."""


class NoKernelError(ValueError):
    """The steps of a model cannot be run as one kernel; the message says why."""


class InKernel(Wrapper):
    """Any stepper that moves every coordinate by itself, with its steps between records as one kernel.

    Attributes:
        stepper: what advances the paths.
        interpret: whether Pallas interprets the kernel, on any device, instead of compiling it for a GPU.
        paths: largest number of paths of a block, a power of two.
        warps: number of warps that run a block.
    """

    interpret: bool = eqx.field(static=True)
    paths: int = eqx.field(static=True, default=_PATHS)
    warps: int = eqx.field(static=True, default=_WARPS)

    def steps(
        self, first: Array, end: Array, state: Any, stream: Stream, held: Callable[[Any], Any] | None = None
    ) -> Any:
        """The steps first, …, end − 1 of all paths, by one kernel."""
        dim, paths = self.position(state).shape
        leaves, of_state = jax.tree.flatten(state)
        numbers, of_stepper = jax.tree.flatten(self.stepper)
        block = min(self.paths, 1 << (paths - 1).bit_length())
        shape = (dim + dim % 2, -(-paths // block) * block)  # of whole blocks
        given = (
            [_filled(a, shape) for a in leaves],
            [_filled(jnp.asarray(a), shape) for a in numbers],
            _filled(stream.paths, shape[1:]),
            [jnp.reshape(a, 1) for a in (stream.key[0], stream.key[1], first, end)],
        )
        specs = jax.tree.map(partial(_spec, block=block), given[:2])

        def kernel(states: list[Any], stepper: list[Any], paths: Any, span: list[Any], *out: Any) -> None:
            key, ids = (span[0][0], span[1][0]), paths[:]
            pair = pl.program_id(0).astype(jnp.uint32)

            def member(refs: list[Any], i: int) -> list[Array]:
                return [ref[0] if ref.shape == (1,) else ref[i : i + 1] for ref in refs]

            movers = [jax.tree.unflatten(of_stepper, member(stepper, i)) for i in (0, 1)]

            def moved(k: Array, both: list[Any]) -> list[Any]:
                return [_moved(movers[i], k, both[i], key, ids, pair, i) for i in (0, 1)]

            begin = [jax.tree.unflatten(of_state, member(states, i)) for i in (0, 1)]
            done = lax.fori_loop(span[2][0], span[3][0], moved, begin)
            for i in (0, 1):
                for ref, value in zip(out, jax.tree.leaves(done[i]), strict=True):
                    ref[0 if ref.shape == (1,) else slice(i, i + 1)] = value

        outputs = pl.pallas_call(
            kernel,
            grid=(shape[0] // 2, shape[1] // block),
            in_specs=(*specs, pl.BlockSpec((block,), lambda i, j: (j,)), [pl.BlockSpec((1,), lambda i, j: (0,))] * 4),
            out_specs=specs[0],
            out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in given[0]],
            input_output_aliases={i: i for i, a in enumerate(leaves) if jnp.ndim(a)},
            interpret=self.interpret,
            compiler_params=triton.CompilerParams(num_warps=self.warps),
            name="steps",
        )(*given)
        back = [a[:dim, :paths] if jnp.ndim(b) else a[0] for a, b in zip(outputs, leaves, strict=True)]
        return jax.tree.unflatten(of_state, back)


def in_kernel(stepper: Stepper, interpret: bool) -> InKernel:
    """A stepper with its steps between records as one kernel, compared with the stepper itself on two paths.

    Args:
        stepper: what advances the paths.
        interpret: whether Pallas interprets the kernel instead of compiling it for a GPU.

    Raises:
        NoKernelError: if the steps cannot be run as one kernel; the message says why.
    """
    known, key = alike(stepper)
    numbers = tuple(_digest(a) for a in jax.tree.leaves(stepper))
    if (key, numbers, interpret) not in _REFUSALS:
        if len(_REFUSALS) >= _MOST_REFUSALS:
            _REFUSALS.clear()
        _REFUSALS[key, numbers, interpret] = _refusal(known, key, interpret)
    if reason := _REFUSALS[key, numbers, interpret]:
        raise NoKernelError(reason)
    return InKernel(stepper, interpret)


_MOST_REFUSALS: Final = 512
_REFUSALS: dict[Any, str] = {}
"""Why steppers have no kernel, empty if they have one. It may depend on their numbers, as on the radius of SAM."""


def _digest(number: Any) -> Hashable:
    """Shape, type and SHA-256 of the contents of an array or a number."""
    array = np.asarray(number)
    return array.shape, array.dtype.name, hashlib.sha256(array.tobytes()).hexdigest()


def _refusal(stepper: Stepper, key: Hashable, interpret: bool) -> str:
    """Why the steps of a stepper, which has this key by `alike`, cannot be run as one kernel; empty if they can."""
    if type(stepper) not in (Discrete, EulerMaruyama):
        return "only optimizers and SDEs in closed form, without averages and conditions, have one"
    if stepper.expensive_gradient:
        return "evaluating its gradient dominates the cost of a step"
    words = (jax.ShapeDtypeStruct((size,), jnp.uint32) for size in (2, 1))
    state = jax.eval_shape(stepper.init, Stream(*words))  # type: ignore[arg-type]
    dim = stepper.position(state).shape[0]
    if stepper.draws not in (0, dim):
        return "it draws several random numbers per coordinate"
    leaves = [jax.eval_shape(jnp.asarray, a) for a in jax.tree.leaves((stepper, state))]
    if any(a.dtype == jnp.float64 or a.shape not in ((), (dim,), (dim, 1)) for a in leaves):
        return (
            "its numbers are in float64, or its problem or noise has a matrix or another array than one per coordinate"
        )
    stepper = jax.tree.map(lambda a: a[:_COORDINATES] if jnp.ndim(a) else a, stepper)
    try:
        if not interpret:  # so that it fails here and not during the run; it needs no GPU
            device = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=132, platform="gpu")
            with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
                _same.trace(stepper, InKernel(stepper, interpret=False), key, np.int32(0)).lower(
                    lowering_platforms=("cuda",)
                )
        interpreted = InKernel(stepper, interpret=True)
        same = not _combines(stepper) and all(bool(_same(stepper, interpreted, key, np.int32(k))) for k in _FIRST_STEPS)
    except (NotImplementedError, TypeError, ValueError) as error:
        return _reason(error)
    return "" if same else "its coordinates do not move independently of one another"


def _reason(error: Exception) -> str:
    """Why steps cannot be compiled as a kernel, from what JAX says."""
    text = str(error).splitlines()[0].split(". Please")[0].rstrip(".")
    if "captures constants" in text:
        return "its steps use arrays of constants, which Pallas does not take"
    return f"its steps cannot be computed for each coordinate by itself, as those on a diagonal quadratic can ({text})"


def _combines(stepper: Stepper) -> bool:
    """Whether a step combines coordinates, as clipping by the norm does, which may change nothing where it is tried."""
    words = Stream(*(jax.ShapeDtypeStruct((size,), jnp.uint32) for size in (2, _CHECKED)))  # type: ignore[arg-type]
    k, state = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(_begun, stepper, words)
    found = primitives(jax.make_jaxpr(type(stepper).moved)(stepper, k, state, words)) - {"reduce_precision"}
    return any(name.startswith(_COMBINING) for name in found)


def _begun(stepper: Stepper, stream: Stream) -> Any:
    """The initial states of the paths of a stream."""
    return jax.tree.map(lambda leaf: over_paths(jnp.asarray(leaf), _CHECKED), stepper.init(stream))


@partial(quick, static_argnums=2)
def _same(stepper: Stepper, kernel: InKernel, key: Hashable, first: Array) -> Array:
    """Whether a few steps of two paths from step `first` on are the same with and without the kernel, up to rounding.

    The steps are compared, not the states, since steps of a small learning rate hardly change the states. They begin
    at other points than the start, where coordinates may be equal.
    """
    stream = Stream(jnp.array([1, 2], jnp.uint32), lax.iota(jnp.uint32, _CHECKED))
    begin = _begun(stepper, stream)
    apart = jnp.linspace(-1, 1, begin.x.size, dtype=begin.x.dtype).reshape(begin.x.shape)
    begin = begin._replace(x=begin.x + apart)
    usual, ours = (one.steps(first, first + _CHECKED, begin, stream) for one in (stepper, kernel))

    def equal(before: Array, usual: Array, ours: Array) -> Array:
        rounding = 32 * jnp.finfo(jnp.float32).eps * jnp.maximum(jnp.abs(before), jnp.abs(usual))
        step = jnp.abs(usual - before).max(axis=0)
        near = jnp.abs(usual - ours) <= rounding + _TOLERANCE * step
        return (near | (usual == ours) | (jnp.isnan(usual) & jnp.isnan(ours))).all()

    triples = zip(*map(jax.tree.leaves, (begin, usual, ours)), strict=True)
    return jnp.stack([equal(*triple) for triple in triples if jnp.ndim(triple[0])]).all()


def _filled(leaf: Array, shape: tuple[int, ...]) -> Array:
    """An array as the kernel takes it: filled up with zeros to whole blocks, or one number of shape (1,)."""
    if not jnp.ndim(leaf):
        return jnp.reshape(leaf, 1)
    missing = [(0, n - m) for n, m in zip(shape, leaf.shape, strict=False)]
    return jnp.pad(leaf, missing) if any(n for _, n in missing) else leaf


def _spec(leaf: Array, block: int) -> pl.BlockSpec:
    """What of an array block (i, j) of the grid takes: pair i of the coordinates, block j of the paths."""
    if leaf.ndim == 2:
        return pl.BlockSpec((2, block), lambda i, j: (i, j))
    return pl.BlockSpec((1,), lambda i, j: (0,)) if leaf.shape == (1,) else pl.BlockSpec((2,), lambda i, j: (i,))


def _moved(mover: Stepper, k: Array, state: Any, key: Any, paths: Array, pair: Array, member: int) -> Any:
    """One step of one coordinate, without what it does not use, such as the loss."""

    def step(mover: Stepper, k: Array, state: Any, key: Any, paths: Array, pair: Array) -> Any:
        return mover.moved(k, state, Stream(key, paths, (pair, member)))

    arguments = (mover, k, state, key, paths, pair)
    traced, shape = jax.make_jaxpr(step, return_shape=True)(*arguments)
    jaxpr, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals), instantiate=True)
    return jax.tree.unflatten(jax.tree.structure(shape), _evaluated(jaxpr, traced.consts, jax.tree.leaves(arguments)))


def _evaluated(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, with the operations that Pallas lacks on a GPU expressed by others."""
    known = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        given, name = [value(v) for v in equation.invars], equation.primitive.name
        if name in _CALLS:
            inner = equation.params[_CALLS[name]]
            found = _evaluated(inner.jaxpr, inner.consts, given)
        elif name in _LACKING:
            found = [_LACKING[name](*given)]
        else:
            found = equation.primitive.bind(*given, **equation.params)
            found = found if equation.primitive.multiple_results else [found]
        known |= dict(zip(equation.outvars, found, strict=True))
    return [value(v) for v in jaxpr.outvars]
