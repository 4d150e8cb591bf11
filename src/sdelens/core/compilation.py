"""Compiler options, chosen in one place by how much a program computes.

XLA takes most of a second to compile optimised code for a CPU, while small ensembles run for milliseconds. Without
optimisation the same program compiles in a fifth of that time and runs some ten times slower. A program is therefore
compiled without optimisation (the quick way) if its extra running time is less than the compilation time that is saved.
The running time is estimated by the number of array elements that the program computes. This number depends only on the
program and the sizes of the run, so equal runs, and a run and its resumption, are compiled in the same way. The results
of the two ways differ by rounding.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import jaxlib.version
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.extend.core import Literal as Constant

from sdelens.core import check
from sdelens.core.machine import cores

__all__ = [
    "SMALL",
    "WIDE",
    "Program",
    "Traced",
    "Way",
    "cache_programs",
    "compiled_ahead",
    "compiler_options",
    "operations",
    "primitives",
    "program",
    "quick",
]

Way = Literal["quick", "narrow", "wide"]
SMALL = 3e8
"""Number of computed array elements up to which the quick way is taken: it adds at most 0.02 s and saves 0.5 s."""

_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
_HAS_CHOICE = jaxlib.version.__version_info__ < (0, 11, 1)
"""Whether XLA can compile loops of a CPU in its older way, which takes less time; later versions refuse the option."""


def _options(emitters: bool, level: int, parts: int) -> dict[str, Any]:
    chosen = {"xla_backend_optimization_level": level, "xla_cpu_parallel_codegen_split_count": parts}
    return chosen | ({"xla_cpu_use_fusion_emitters": emitters} if _HAS_CHOICE else {})


_NARROW = {"xla_gpu_enable_command_buffer": _GRAPHS} | _options(True, 3, 32)
"""For speed: XLA's defaults, whatever XLA_FLAGS says; a GPU runs whole loops as CUDA graphs, saving 15 µs per step."""
WIDE = _NARROW | {"xla_cpu_prefer_vector_width": 512}
"""The same options with vectors of 512 bits, on CPUs that have them: a third faster."""
_QUICK = _NARROW | _options(False, 0, 1)
_OPTIONS: dict[Way, dict[str, Any]] = {"quick": _QUICK, "narrow": _NARROW, "wide": WIDE}
_WRONG_IN_WIDE = frozenset({"atan", "atan2"})
"""Primitives for which jaxlib 0.10.2 can return wrong numbers in wide vectors; the tests check all others."""
_EQUALITY = "equality of floats"
"""It occurs in the derivative of a maximum. Without optimisation XLA may round a number that is used twice in two
different ways, and then no element equals the maximum."""
_WRITTEN = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}
"""Operations that write into an array in place, with the index of the argument that holds the new values."""
_PROGRAMS = (ClosedJaxpr, Jaxpr)


def cache_programs(folder: str | os.PathLike[str] | None = None, *, max_bytes: int = 2**30) -> Path:
    """Keep compiled programs in a folder, from which this and later processes load them instead of compiling again.

    It sets JAX's persistent compilation cache for the whole process, and also applies to other programs of JAX. The
    library itself never calls it; the shell does. The folder holds compiled code that later processes execute: use one
    that only you can write to.

    Args:
        folder: the folder, created if it is missing; by default ``sdelens/programs`` in the user's cache folder, which
            is ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux, and the usual one on macOS and Windows.
        max_bytes: size of the folder above which the least recently used programs are removed.

    Returns:
        The folder.

    Raises:
        ValueError, TypeError: if `max_bytes` is not a whole number of at least 1.
        OSError: if the folder cannot be created.
    """
    import platformdirs
    from jax.experimental.compilation_cache import compilation_cache

    limit = check.at_least("max_bytes", max_bytes, 1)
    chosen = platformdirs.user_cache_path("sdelens") / "programs" if folder is None else Path(folder)
    chosen.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_compilation_cache_max_size", limit)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()  # JAX chooses the folder when it first compiles
    return chosen


def program(**options: Any) -> Callable[[Callable[..., Any]], "Program"]:
    """Decorator that makes a `Program`; options are those of `jax.jit`."""
    return partial(Program, **options)


def quick(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for functions that run once or compute little, compiled the quick way."""
    return jax.jit(function, compiler_options=_QUICK, **options)


class Program:
    """A function that is compiled the quick way if it computes little, and otherwise for speed.

    Args:
        function: a function of arrays and pytrees of arrays.
        options: options of `jax.jit`.
    """

    def __init__(self, function: Any, **options: Any) -> None:
        jitted = partial(jax.jit, function, **options)
        self._jitted = {way: jitted(compiler_options=chosen) for way, chosen in _OPTIONS.items()}
        self._compiled: WeakKeyDictionary[ClosedJaxpr, set[Way]] = WeakKeyDictionary()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The function's value."""
        return self.chosen(1, *arguments, **named)(*arguments, **named)

    def chosen(self, repeats: float, *arguments: Any, **named: Any) -> Any:
        """The jitted function with the compiler options that suit the arguments, those of `traced`."""
        return self.traced(repeats, *arguments, **named).function

    def traced(self, repeats: float, *arguments: Any, **named: Any) -> "Traced":
        """The program for these arguments, not compiled.

        Args:
            repeats: number of iterations of loops whose length is not known from the program.
            arguments: arguments of the function; arrays may be replaced by their shapes.
            named: keyword arguments of the function.
        """
        traced = self._jitted["narrow"].trace(*arguments, **named)
        way = _way(traced.jaxpr, repeats, _platform(arguments))
        compilation = partial(self._compilation, traced.jaxpr, way, *arguments, **named)
        return Traced(self._jitted[way], traced.jaxpr, traced.out_info, compilation)

    def _compilation(self, jaxpr: ClosedJaxpr, way: Way, *arguments: Any, **named: Any) -> Callable[[], Any] | None:
        compiled = self._compiled.setdefault(jaxpr, set())
        if way in compiled:
            return None
        compiled.add(way)
        compiling: Callable[[], Any] = self._jitted[way].lower(*arguments, **named).compile
        return compiling

    def lower(self, *arguments: Any) -> Any:
        """The lowered program for these arguments, not compiled."""
        return self._jitted["narrow"].lower(*arguments)


class Traced(NamedTuple):
    """A program for arguments of some shapes.

    Attributes:
        function: the jitted function to call.
        jaxpr: its operations.
        shapes: shapes of its value.
        compilation: lowers the program and returns a function that compiles it, which may be called in another thread;
            None if one was returned before. Calls of `function` then use the compiled program.
    """

    function: Any
    jaxpr: ClosedJaxpr
    shapes: Any
    compilation: Callable[[], Callable[[], Any] | None]


@contextmanager
def compiled_ahead(compilations: Iterable[tuple[str, Callable[[], Any] | None]]) -> Iterator[Callable[[str], None]]:
    """Compile on all cores in the background; yields a function that waits until the programs of a name are ready.

    Args:
        compilations: names, in the order in which they will be needed, each with a result of `Traced.compilation`.
    """
    waiting: dict[str, list[Future[Any]]] = {}
    pool = ThreadPoolExecutor(len(cores()))

    def wait(name: str) -> None:
        for future in waiting.pop(name, []):
            future.result()

    try:
        for name, compilation in compilations:
            if compilation is not None:
                waiting.setdefault(name, []).append(pool.submit(compilation))
        yield wait
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def compiler_options(jaxpr: ClosedJaxpr, repeats: float, arguments: Any) -> dict[str, Any]:
    """The options that suit a traced program, with `repeats` and `arguments` as in `Program.chosen`."""
    return _OPTIONS[_way(jaxpr, repeats, _platform(arguments))]


def _platform(arguments: Any) -> str:
    """Platform of the first array that is placed on a device, else JAX's default."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arguments))
    known = (device.platform for sharding in shardings if sharding is not None for device in sharding.device_set)
    return next(known, jax.default_backend())


def _way(jaxpr: ClosedJaxpr, repeats: float, platform: str) -> Way:
    if platform == "cpu" and operations(jaxpr, repeats) <= SMALL and _EQUALITY not in primitives(jaxpr):
        return "quick"
    return "narrow" if primitives(jaxpr) & _WRONG_IN_WIDE else "wide"


@lru_cache(maxsize=256)
def operations(jaxpr: ClosedJaxpr, repeats: float = 1) -> float:
    """Number of array elements that a program computes on a CPU; for products of arrays, see `_multiplications`.

    A loop counts as many times as it runs if that is known, else `repeats` times, or once if it is inside another such
    loop. Of several branches only the most expensive one counts.
    """
    return _operations(jaxpr.jaxpr, repeats)


def _operations(jaxpr: Jaxpr, repeats: float) -> float:
    total = 0.0
    for equation in _needed(jaxpr):
        name, parts = equation.primitive.name, _parts(equation)
        inner = [_operations(part, 1 if name == "while" else repeats) for part in parts]
        if name == "cond":
            platforms = equation.params.get("branches_platforms") or [None] * len(inner)
            ours = [n for n, names in zip(inner, platforms, strict=True) if names is not None and "cpu" in names]
            total += max(ours or inner)
        elif parts:
            total += {"scan": equation.params.get("length"), "while": repeats}.get(name, 1) * sum(inner)
        else:
            written = equation.invars[_WRITTEN[name] : _WRITTEN[name] + 1] if name in _WRITTEN else equation.outvars
            elements = float(sum(math.prod(_shape(variable)) for variable in written))
            total += elements * _multiplications(equation) if name == "dot_general" else elements
    return total


def _multiplications(product: Any) -> float:
    """How much each element of a product of arrays counts: its multiplications, or a tenth of them for two matrices.

    A library multiplies two matrices, as fast without optimisation as with it (measured: 2 to 8 ps more for each
    multiplication); for vectors and batches of matrices the compiler writes the loops (150 to 1000 ps more).
    """
    (contracted, _), (batched, _) = product.params["dimension_numbers"]
    shapes = [_shape(variable) for variable in product.invars]
    count = math.prod(shapes[0][i] for i in contracted)
    matrices = not batched and all(math.prod(shape) > count for shape in shapes)
    return count / 10 if matrices else count


def _is_floating(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.floating)


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


@lru_cache(maxsize=256)
def primitives(jaxpr: ClosedJaxpr) -> frozenset[str]:
    """Names of all primitives in a program, including those in its loops, branches and calls."""

    def names(inner: Jaxpr) -> Iterator[str]:
        for equation in _needed(inner):
            yield equation.primitive.name
            constant = any(isinstance(variable, Constant) for variable in equation.invars)  # as in == ∞ of softplus
            if equation.primitive.name == "eq" and _is_floating(equation.invars[0]) and not constant:
                yield _EQUALITY
            for part in _parts(equation):
                yield from names(part)

    return frozenset(names(jaxpr.jaxpr))


def _needed(jaxpr: Jaxpr) -> list[Any]:
    """The operations whose results are used, last first; differentiation adds unused ones, which compilers remove."""
    used = {id(out) for out in jaxpr.outvars}
    needed = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(out) in used for out in equation.outvars):
            needed.append(equation)
            used.update(id(variable) for variable in equation.invars)
    return needed


def _parts(equation: Any) -> list[Jaxpr]:
    """The programs within an operation: bodies of loops, branches, called functions."""
    leaves = jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda a: isinstance(a, _PROGRAMS))
    return [a.jaxpr if isinstance(a, ClosedJaxpr) else a for a in leaves if isinstance(a, _PROGRAMS)]
