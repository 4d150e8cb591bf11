"""The entry point for gradients: turns gradients of any form into moments, one after another."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from sdelens.core import check
from sdelens.core.limits import CONFIDENCE
from sdelens.core.random import Stream, stream_key
from sdelens.diagnosis._noise import ALL, GradientNoise
from sdelens.diagnosis._patterns import OTHER, labels_by
from sdelens.diagnosis.nuclear_sums import Matrices, as_matrices
from sdelens.diagnosis.streams import Layout, Moments
from sdelens.problems import EXAMPLE_BYTES, AbstractProblem, Problem

__all__ = ["as_groups", "gradient_noise"]

_PER: Final = ("sample", "batch")
Groups = Mapping[str, str] | Sequence[str] | None


def gradient_noise(
    gradients: Any,
    *,
    batch_size: int | Sequence[int] = 1,
    per: str = "sample",
    groups: Groups = None,
    count: int | None = None,
    population: int | None = None,
    x: Any = None,
    loss: Callable[[Any], Any] | None = None,
    hvp: Callable[[Any], Any] | bool | None = None,
    matrices: Matrices = None,
    tails: bool = True,
    tail_coordinates: int = 32,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> GradientNoise:
    r"""Estimate size, scale, phases and tails of gradient noise from gradients at one point, in one pass.

    Stored are two numbers per coordinate in float64, some scalars per gradient, and the values of `tail_coordinates`
    coordinates per group. See `GradientNoise` for the formulas.

    Args:
        gradients: K independent gradients at one point. An iterator or a list of pytrees of arrays (JAX, NumPy or
            PyTorch; a single array is one too), of which complex ones are taken as pairs of real numbers, on a last
            axis of 2; an array whose first axis is K, or a dict or other pytree of such arrays, as from `np.load`; a
            data frame whose rows are gradients; a function of i = 0, …, `count` − 1; or a `Problem` with data: its
            per-example gradients at `x`, or, with `batch_size` above 1, those of `count` mini-batches drawn with
            replacement.
        batch_size: samples of which each gradient is the mean; one number per gradient if they differ.
        per: ``"sample"`` or ``"batch"``: whether Σ is reported for one sample or for the mean of `batch_size`.
        groups: None for a group per leaf; a dict from names to regular expressions, of which the first found in a
            leaf's path decides; or a list of expressions. Leaves that match none form the group ``"other"``.
        count: number of gradients to request from a function, or number of a problem's examples (drawn without
            replacement) or mini-batches.
        population: size of the population, if `gradients` were drawn from a finite one without replacement; if all of
            it is drawn, ∇f = ḡ without error. It is known for a problem's examples.
        x: the point: with a problem, a flat vector or a pytree, by default its start; with `loss`, the parameters.
        loss: loss(params), whose Hessian at `x` weights `GradientNoise.curved_noise_scale`, by `jax.jvp` of its
            gradient.
        hvp: instead of `loss`, v ↦ Hv on pytrees; True for a problem. At most about 64 log K products are computed.
        matrices: leaves whose noise scale is also measured in the nuclear norm, that of Muon: True for all with two or
            more axes, or one or more regular expressions, of which one is found in the leaf's path. Of more than two
            axes, all but the first are joined. For m × n numbers, m ≤ n, every gradient then costs 2m²n operations
            more, 1 + log₂ K means are decomposed, and mn + m² more numbers are stored.
        tails: whether to fit tails; without them, heavy tails do not stop limits of the noise scale from being given.
        tail_coordinates: coordinates per group, drawn with `seed`, to which the tails are fitted, from at most 4096
            gradients; the tails of the whole are fitted to at most 256 of them.
        confidence: confidence of all limits.
        seed: seed of the draws named above.

    Returns:
        `GradientNoise`; print it for tables and a verdict.

    Raises:
        TypeError, ValueError: if there are no gradients, shapes differ, or entries are not finite; the message says it.

    Source: noise scale, arXiv 1812.06162; phases, arXiv 2411.15958. Limits and tails are derived here.

    Examples:
        >>> import numpy as np, sdelens as sl
        >>> draws = 0.1 + np.random.default_rng(0).standard_t(3, size=(500, 20))
        >>> found = sl.gradient_noise(draws, batch_size=32)
        >>> bool(found.tails["all"].lower < 1 / 3 < found.tails["all"].upper)
        True
    """
    check.choice("per", per, _PER)
    count = None if count is None else check.at_least("count", count, 2)
    population = None if population is None else check.at_least("population", population, 2)
    seed = check.at_least("seed", seed, 0)
    keep = check.at_least("tail_coordinates", tail_coordinates, 1) if tails else 0
    if not 0 < check.number("confidence", confidence) < 1:
        raise ValueError(f"confidence: got {confidence}; it must lie between 0 and 1, for example 0.99.")
    size, listed = 1.0, None
    if isinstance(batch_size, Sequence | np.ndarray) and not isinstance(batch_size, str):
        listed = [float(check.at_least("batch_size", b, 1)) for b in batch_size]
    else:
        size = float(check.at_least("batch_size", batch_size, 1))
    if isinstance(gradients, AbstractProblem):
        source: Iterable[Any]
        source, population, product = _of_problem(gradients, batch_size, count, population, x, loss, hvp, seed)
    else:
        source, product = _source(gradients, count), _product(loss, x, hvp)
    moments: Moments | None = None
    for tree in source:
        names, leaves, rebuild = _leaves(tree)
        if moments is None:
            layout = as_groups(names, tuple(v.shape for v in leaves), rebuild, groups, matrices, _complex(names, tree))
            on_leaves = None if product is None else functools.partial(_on_leaves, product, rebuild)
            moments = Moments(layout, keep, seed, on_leaves)
        elif names != moments.layout.names:
            raise ValueError(
                f"gradients: gradient {moments.count} has the leaves {', '.join(names)}, but the first has "
                f"{', '.join(moments.layout.names)}; give gradients with the same leaves."
            )
        if listed is not None and moments.count == len(listed):
            raise ValueError(
                f"batch_size: got {len(listed)} sizes, but there are more gradients; give one size for each gradient."
            )
        moments.add(leaves, size if listed is None else listed[moments.count])
    if moments is None:
        raise ValueError("gradients: got none; give two or more.")
    if listed is not None and moments.count < len(listed):
        raise ValueError(
            f"batch_size: got {len(listed)} sizes for {moments.count} gradients; give one size for each gradient."
        )
    return GradientNoise(moments, per, population, confidence)


def as_groups(
    names: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    rebuild: Callable[[list[Any]], Any],
    groups: Groups,
    matrices: Matrices = None,
    pairs: Collection[str] = (),
) -> Layout:
    """The layout of leaves in groups, with the matrices whose nuclear norm is measured.

    Args:
        names: as in `Layout`.
        shapes: as in `Layout`.
        rebuild: as in `Layout`.
        groups: as in `gradient_noise`.
        matrices: as in `gradient_noise`.
        pairs: names of the leaves that are complex, which are no matrices here.

    Raises:
        TypeError: if `groups` or `matrices` is of another type.
        ValueError: if an expression is invalid or matches nothing, or a group would be called "all".
    """
    measured = as_matrices(names, shapes, matrices, pairs)
    if groups is None:
        if ALL in names:
            raise ValueError(
                f"groups: a parameter is named {ALL!r}, which is the name of all parameters together; give groups "
                "with other names."
            )
        return Layout(names, shapes, names, tuple(range(len(names))), rebuild, measured)
    patterns = dict(groups) if isinstance(groups, Mapping) else None
    if patterns is None and not isinstance(groups, str) and isinstance(groups, Sequence):
        patterns = {str(p): p for p in groups}
    if not patterns or not all(isinstance(v, str) for pair in patterns.items() for v in pair):
        raise TypeError(f"groups: got {groups!r}; give a dict from names to regular expressions, or a list of them.")
    owner = [*map(labels_by(patterns), names)]
    labels = [label for label in [*patterns, OTHER] if label in owner]
    missing = [label for label in patterns if label not in labels]
    if missing or ALL in labels:
        why = (
            f"no parameter belongs to {missing[0]!r}" if missing else f"{ALL!r} is the name of all parameters together"
        )
        raise ValueError(f"groups: {why}; choose other groups for the parameters {', '.join(names)}.")
    return Layout(names, shapes, tuple(labels), tuple(labels.index(o) for o in owner), rebuild, measured)


def _leaves(tree: Any) -> tuple[tuple[str, ...], list[np.ndarray], Callable[[list[Any]], Any]]:
    """Names and arrays of a gradient's leaves, and the function that rebuilds the tree from other leaves."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = tuple(jax.tree_util.keystr(path, simple=True, separator=".") or "gradient" for path, _ in paths)
    arrays = [_array(name, leaf) for name, (_, leaf) in zip(names, paths, strict=True)]
    if not arrays or not sum(a.size for a in arrays):
        raise ValueError("gradients: got a gradient without any numbers; give pytrees of floating arrays.")
    return names, arrays, functools.partial(jax.tree_util.tree_unflatten, treedef)


def _complex(names: Sequence[str], tree: Any) -> list[str]:
    """Names of the leaves that are complex."""
    leaves = jax.tree_util.tree_leaves(tree)
    return [name for name, leaf in zip(names, leaves, strict=True) if "complex" in str(getattr(leaf, "dtype", ""))]


def _array(name: str, leaf: Any) -> np.ndarray:
    if type(leaf).__module__.partition(".")[0] == "torch":
        if leaf.layout is not _strided(leaf):
            raise TypeError(
                f"gradients: {name} is a sparse tensor; give dense gradients (sparse=False), or leave it out."
            )
        leaf = leaf.detach().cpu().resolve_conj()
        leaf = leaf.float() if leaf.is_floating_point() and leaf.element_size() < 4 else leaf
        leaf = leaf.numpy()
    array = np.asarray(leaf)
    if np.issubdtype(array.dtype, np.complexfloating):
        return np.stack([array.real, array.imag], axis=-1)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"gradients: {name} is of type {array.dtype}; give floating or complex arrays.")
    return array


def _strided(tensor: Any) -> Any:
    import torch

    return torch.strided


def _source(gradients: Any, count: int | None) -> Iterable[Any]:
    """Iterate over gradients of any supported form."""
    if callable(gradients) and not hasattr(gradients, "__array__"):
        if count is None:
            raise ValueError(
                "count: got None, but gradients is a function of i; give the number of gradients to compute."
            )
        return (gradients(i) for i in range(count))
    if count is not None:
        raise ValueError("count: applies only to a function or a problem; leave it out.")
    if isinstance(gradients, Iterator) or type(gradients) in (list, tuple):
        return gradients
    if isinstance(gradients, Mapping) and not isinstance(gradients, dict):
        gradients = dict(gradients)  # for an .npz file, np.load returns a mapping
    if hasattr(gradients, "to_numpy"):
        gradients = _rows(gradients)
    leaves, treedef = jax.tree_util.tree_flatten(gradients)
    sizes = {int(np.shape(v)[0]) if np.ndim(v) else 0 for v in leaves}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"gradients: got {type(gradients).__name__} whose arrays have first axes {sorted(sizes)}; give arrays "
            "whose first axis counts the gradients, or a list of gradients."
        )
    return (jax.tree_util.tree_unflatten(treedef, [v[i] for v in leaves]) for i in range(sizes.pop()))


def _rows(frame: Any) -> np.ndarray:
    """The numbers of a data frame, whose rows are gradients and whose columns are coordinates."""
    rows = np.asarray(frame.to_numpy())
    if not np.issubdtype(rows.dtype, np.number):
        raise TypeError(
            f"gradients: got a {type(frame).__name__} with columns that are not numbers; leave these columns out."
        )
    return rows


def _product(loss: Any, x: Any, hvp: Any) -> Callable[[Any], Any] | None:
    """The map v ↦ Hv on pytrees, or None."""
    if callable(hvp) and loss is None:
        return hvp
    if hvp:
        raise TypeError(
            f"hvp: got {hvp!r}; give a function v ↦ Hv, or `loss` and `x`; True is possible only with a problem."
        )
    if loss is None:
        if x is not None:
            raise TypeError("x: applies only to a problem or together with `loss`; leave it out.")
        return None
    if x is None:
        raise TypeError("x: got None; give the parameters at which the Hessian of `loss` is computed.")

    def dtyped(v: Any, like: Any) -> Any:
        return jnp.asarray(v, jnp.asarray(like).dtype)

    return jax.jit(lambda v: jax.jvp(jax.grad(loss), (x,), (jax.tree.map(dtyped, v, x),))[1])


def _on_leaves(product: Callable[[Any], Any], rebuild: Callable[[list[Any]], Any], leaves: list[Any]) -> list[Any]:
    return [np.asarray(v) for v in jax.tree.leaves(product(rebuild(leaves)))]


def _of_problem(
    problem: Any, batch_size: Any, count: int | None, population: int | None, x: Any, loss: Any, hvp: Any, seed: int
) -> tuple[Iterator[Any], int | None, Callable[[Any], Any] | None]:
    """Gradients of a problem, the size of their population, and the product with the Hessian."""
    if not isinstance(problem, Problem) or problem.examples is None:
        raise TypeError(
            "gradients: got a problem without examples, whose gradient has no noise; give sl.Problem(loss, start, "
            "data), a network, or gradients with noise."
        )
    if loss is not None or not (hvp is None or isinstance(hvp, bool)) or population is not None:
        raise TypeError(
            "loss, hvp, population: the problem determines them; leave them out, or give hvp=True for the curvature."
        )
    problem.check_examples()
    size = check.at_least("batch_size", batch_size, 1)
    at = problem.start if x is None else _position(problem, x)
    layout, examples = problem.layout, problem.examples
    stream = Stream(jnp.asarray(stream_key(seed, "gradient noise")), jnp.zeros(1, jnp.uint32))
    if size == 1:
        number = examples if count is None else count
        if number > examples:
            raise ValueError(f"count: got {number}, but there are only {examples} examples; give {examples} or fewer.")
        index = np.arange(examples)[:, None]
        if number < examples:
            index = jax.jit(lambda: stream.permutation(jnp.arange(number), examples))()
        population = examples
    else:
        if count is None:
            raise ValueError("count: got None; give the number of mini-batches to draw.")
        number = count
        # One program: words that lie in floating-point numbers inside it may look like NaN (JAX_DEBUG_NANS).
        index = jax.jit(lambda: stream.integers(number * size, examples).reshape(number, size))()

    chunk = min(number, max(1, EXAMPLE_BYTES // (at.dtype.itemsize * problem.dim)))
    many = jax.jit(jax.vmap(lambda index: problem.batch_gradient(at, index)))

    def source() -> Iterator[Any]:
        for first in range(0, number, chunk):
            take = np.minimum(np.arange(first, first + chunk), number - 1)
            rows = np.asarray(many(index[take]))
            for row in rows[: min(chunk, number - first)]:
                yield _arrays(layout, row)

    def product(v: Any) -> Any:
        return _arrays(layout, hessian(layout.ravel(v) if layout.matches(v) else jnp.ravel(v)))

    hessian = jax.jit(lambda v: jax.jvp(lambda x: problem.evaluate(x)[1], (at,), (jnp.asarray(v, at.dtype),))[1])
    return source(), population, product if hvp else None


def _arrays(layout: Any, flat: Any) -> Any:
    """The pytree of the floating-point leaves only."""
    tree = layout.unravel(jnp.asarray(flat))
    return jax.tree.map(lambda v: v if isinstance(v, np.ndarray | jax.Array) else None, tree)


def _position(problem: Problem, x: Any) -> Any:
    """A point as a flat vector, from one or from a pytree of the problem's structure."""
    flat = problem.layout.ravel(x) if problem.layout.matches(x) else jnp.ravel(jnp.asarray(x))
    if flat.shape != (problem.dim,):
        raise ValueError(f"x: got shape {np.shape(x)}; give {problem.dim} numbers, or parameters like the start.")
    if not bool(jnp.isfinite(flat).all()):
        raise ValueError("x: has entries that are not finite; give finite parameters.")
    return flat.astype(problem.start.dtype)
