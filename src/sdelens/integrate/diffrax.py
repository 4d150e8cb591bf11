"""A bridge to diffrax: the library's SDEs with diffrax's solvers, Brownian paths and step-size control."""

import math
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.cases.case import check_start, check_subject
from sdelens.cases.starts import Start, start_of
from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.noise import AbstractNoise
from sdelens.optimizers import SGD, AdamW, Momentum, Optimizer, State
from sdelens.problems import AbstractProblem
from sdelens.sdes import SDE, Builder, Instant, QueriedSDE, build_sde, check_pathwise, is_own, sdes_of

__all__ = ["DiffraxSDE", "to_diffrax"]

_ROUNDING = 1e-3
"""Fraction of a step by which a time may lie before the start of the step and still count as within it."""


class DiffraxSDE(eqx.Module):
    """An SDE in diffrax's form: terms, initial state and times of one path; `jax.vmap` over keys gives many paths.

    Attributes:
        solver: the diffrax solver for which the equation was made.
        sde: the equation, in the sense of Itô.
        start: where paths start.
        stratonovich: whether the drift is that of the Stratonovich form.
        lr: η, the length of an optimizer step in time t = kη.
        diagonal: whether the diffusion is an element-wise product rather than a matrix.
    """

    solver: Any
    sde: SDE
    start: Start
    lr: float
    stratonovich: bool = eqx.field(static=True)
    diagonal: bool = eqx.field(static=True)

    def y0(self, key: Array | None = None) -> State:
        """The initial state, a `State` of arrays of shape (d,); a random start is drawn with `key`.

        Raises:
            ValueError: if the start is random and no key is given.
        """
        if self.start.sampler is not None and key is None:
            raise ValueError("key: got None, but the start is random; pass the path's random key to y0.")
        return self._begin(key)._replace(count=None)

    def terms(self, key: Array, horizon: float | None = None, tol: float | None = None) -> Any:
        """Drift and diffusion as a `diffrax.MultiTerm`, driven by a Brownian path made from `key`.

        Args:
            key: random key of the path.
            horizon: end time of the Brownian path, required with `tol`.
            tol: resolution of a `diffrax.VirtualBrownianTree`, which adaptive steps need: at most a tenth of the
                shortest step. By default the path is a `diffrax.UnsafeBrownianPath`, for fixed steps, with which
                `diffeqsolve` needs ``adjoint=diffrax.ForwardMode()``.

        Raises:
            ValueError, TypeError: if only one of `horizon` and `tol` is given, or one is not positive.
        """
        if (horizon is None) != (tol is None):
            raise ValueError(
                f"horizon, tol: got {horizon} and {tol}; a VirtualBrownianTree needs both; give both or neither."
            )
        shape = jax.ShapeDtypeStruct(self.sde.noise_shape, self.start_dtype)
        own = jax.random.fold_in(_checked_key(key), 1)
        area = _levy_area(self.solver)
        if tol is None:
            path: Any = diffrax.UnsafeBrownianPath(shape, own, levy_area=area)
        else:
            end, tol = check.positive("horizon", horizon), check.positive("tol", tol)
            path = diffrax.VirtualBrownianTree(0.0, end, tol, shape, own, levy_area=area)
        return diffrax.MultiTerm(diffrax.ODETerm(self._drift), _Diffusion(path, self._diffusion, self.diagonal))

    def times(self, steps: int, substeps: int = 1) -> Array:
        """Times of `steps` optimizer steps with `substeps` each, for `diffrax.StepTo` or as jumps of the coefficients.

        Coefficients that change from step to step (bias correction, schedule) are constant during each step.
        """
        steps, substeps = check.at_least("steps", steps, 1), check.at_least("substeps", substeps, 1)
        return jnp.asarray(np.arange(steps * substeps + 1) * (float(self.lr) / substeps))

    @property
    def start_dtype(self) -> Any:
        """The dtype of the state."""
        return jax.eval_shape(self._begin, jax.random.key(0)).x.dtype

    def _begin(self, key: Array | None) -> State:
        key = jax.random.key(0) if key is None else jax.random.fold_in(_checked_key(key), 0)
        stream = Stream(jax.random.bits(key, (2,), jnp.uint32), jnp.zeros(1, jnp.uint32))
        state = self.start.state(stream, self.sde.init)
        return jax.tree.map(lambda a: a[..., 0] if jnp.ndim(a) == 2 else a, state)

    def _at(self, t: Any, y: State) -> tuple[SDE, Instant, State, Array]:
        """The SDE at the `Instant`, that instant, the complete state, and the mean gradient at that state."""
        step = jnp.floor(jnp.asarray(t) / self.lr + _ROUNDING).astype(jnp.int32)
        whole, sde = y._replace(count=self._begin(None).count), self.sde.at_step(step)
        return sde, Instant(step, jnp.asarray(t)), whole, sde.mean_gradient(y.x, sde.evaluate(y.x)[1])

    def _drift(self, t: Any, y: State, args: Any) -> State:
        sde, moment, whole, grad = self._at(t, y)
        drift = _like(y, sde.drift(moment, whole, grad))
        if not self.stratonovich:
            return drift
        return jax.tree.map(lambda a, b: a - 0.5 * b, drift, self._correction(t, y))

    def _correction(self, t: Any, y: State) -> State:
        """Σⱼ (∂σⱼ)σⱼ over the columns σⱼ of the diffusion."""
        shape = self.sde.noise_shape

        def column(index: Array) -> State:
            unit = jnp.zeros(math.prod(shape), y.x.dtype).at[index].set(1).reshape(shape)
            apply = partial(self._apply, t, unit)
            return jax.jvp(apply, (y,), (apply(y),))[1]

        return jax.tree.map(lambda a: a.sum(axis=0), jax.vmap(column)(jnp.arange(math.prod(shape))))

    def _apply(self, t: Any, dW: Array, y: State) -> State:
        sde, moment, whole, grad = self._at(t, y)
        return _like(y, sde.apply_diffusion(moment, whole, grad, dW))

    def _diffusion(self, t: Any, y: State) -> State:
        """The diagonal of the diffusion, leaves of shape (d,), or its matrix, leaves of shape (d, m)."""
        shape = self.sde.noise_shape
        if self.diagonal:
            return self._apply(t, jnp.ones(shape, y.x.dtype), y)
        units = jnp.eye(math.prod(shape), dtype=y.x.dtype).reshape(-1, *shape)
        return jax.vmap(lambda unit: self._apply(t, unit, y), out_axes=-1)(units)


class _Diffusion(diffrax.AbstractTerm):
    """Diffusion times the increments of a Brownian path."""

    path: Any
    function: Any
    diagonal: bool = eqx.field(static=True)

    def vf(self, t: Any, y: State, args: Any) -> State:
        return self.function(t, y)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        return self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf: State, control: Array) -> State:
        if self.diagonal:
            return jax.tree.map(lambda a: a * control, vf)
        return jax.tree.map(lambda a: jnp.matmul(a, control.ravel(), precision="highest"), vf)


def to_diffrax(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    model: str | Builder = "sde",
    *,
    solver: Any = None,
    bias_correction: str | None = None,
    start: Any = None,
) -> DiffraxSDE:
    r"""Convert an optimizer's SDE for use with diffrax's solvers, including adaptive steps.

    The equation is dY = b(t, Y) dt + σ(t, Y) dW in the Itô sense. Solvers that converge to the Stratonovich solution
    (`diffrax.EulerHeun`, `Heun`, `SPaRK`, …) get the drift b − ½ Σⱼ (∂σⱼ)σⱼ, where σⱼ are the columns of σ, computed by
    one Jacobian-vector product per column: the two solutions then agree in law. If σ does not depend on the components
    that it drives (SGD, Adam and RMSprop with a constant Σ), the correction is 0 (Kloeden and Platen 1992,
    section 4.9).

    V and X are evaluated at the same time in P, whereas the library's integrators use the new V; the limit Δt → 0 is
    the same, but V must start above 0: Adam with ``v0="second-moment"`` or from a saved state. Bias correction and
    schedule are those of the step k = ⌊t/η⌋ (float32 can distinguish some thousand steps): use
    ``diffrax.StepTo(ts=bridge.times(steps, n))`` or, with adaptive steps, ``jump_ts=bridge.times(steps)``.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer.
        model: an SDE of that optimizer: ``"sde"``, ``"malladi2022"`` or ``"second-order"``; or one that you define, as
            in `compare`: a subclass of `OptimizerSDE`, or a function from problem, noise and optimizer to an `SDE`.
        solver: a diffrax solver for SDEs, by default ``diffrax.Euler()``.
        bias_correction: only for Adam's SDEs, ``"discrete"`` (the default) or ``"exponential"``.
        start: as in `compare`.

    Returns:
        A `DiffraxSDE`, whose `terms`, `y0` and `times` are arguments for `diffrax.diffeqsolve`, together with its
        `solver`, the one passed here: a solver of the other kind (Itô or Stratonovich) would solve a different
        equation. Independent noise gives a diagonal diffusion; other noise, and an SDE that you define, gives a matrix
        of shape (d, m), which is meant for small d.

    Raises:
        ValueError, TypeError: naming the argument, for an unknown model, a solver that is not for SDEs, a solver for
            additive noise if σ depends on the state, or accumulators that start at 0.

    Examples:
        >>> import diffrax, jax, sdelens as sl
        >>> optimizer, heun = sl.SignSGD(0.1), diffrax.EulerHeun()
        >>> bridge = sl.to_diffrax(sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), optimizer, solver=heun)
        >>> def path(key):
        ...     steps = diffrax.StepTo(ts=bridge.times(10, substeps=2))
        ...     return diffrax.diffeqsolve(bridge.terms(key), bridge.solver, 0.0, 1.0, None, bridge.y0(key),
        ...                                stepsize_controller=steps, adjoint=diffrax.ForwardMode()).ys.x[-1]
        >>> jax.vmap(path)(jax.random.split(jax.random.key(0), 5)).shape
        (5, 2)
    """
    check_subject(problem, noise, optimizer)
    known = sdes_of(optimizer)
    if isinstance(model, str) and not known:
        raise ValueError(
            f"optimizer: {optimizer.name} has no SDE in closed form, which a diffrax solver needs; give your own by "
            "model=, or use sl.compare, which runs its empirical SDE."
        )
    if isinstance(model, str):
        model = check.choice("model", model, known)
    elif not callable(model):
        raise TypeError(f"model: got {model!r}; give a name, or a class or function that makes an sl.SDE.")
    solver = diffrax.Euler() if solver is None else solver
    base = solver
    while hasattr(base, "solver"):  # HalfSolver
        base = base.solver
    if not isinstance(base, diffrax.AbstractItoSolver | diffrax.AbstractStratonovichSolver):
        shown = solver.__name__ if isinstance(solver, type) else type(solver).__name__
        raise TypeError(
            f"solver: got {shown}; give a diffrax solver for SDEs, for example diffrax.Euler() (Itô) or "
            "diffrax.EulerHeun() (Stratonovich)."
        )
    bound, begin = noise.bind(problem), start_of(start, problem, optimizer)
    check_start(optimizer, bound, problem, begin)
    sde = build_sde(model, problem, bound, optimizer, bias_correction)
    check_pathwise(sde, problem.start)
    first = begin.state(Stream(jnp.zeros(2, jnp.uint32), jnp.zeros(1, jnp.uint32)), sde.init)
    if first.v is not None and not bool((first.v > 0).all()) and not is_own(sde):
        raise ValueError(
            f"start: V starts at 0, where the SDE of {optimizer.name} divides by √V = 0 (the integrators of this "
            "library advance V first). Use v0='second-moment', or start from an sl.State with v > 0."
        )
    dW = jnp.zeros(sde.noise_shape + first.x.shape[1:], first.x.dtype)
    at_start = Instant(jnp.asarray(0), jnp.asarray(0.0))
    if sde.squares_increments:
        raise ValueError(
            f"model: {model!r} of {optimizer.name} has noise in V, which the integrators of this library compute from "
            "the squares of their increments; use sl.compare with substeps, or the model 'sde' here."
        )
    jax.eval_shape(lambda: sde.apply_diffusion(at_start, first, first.x, dW))  # raises if the noise is unsuitable
    jax.eval_shape(lambda: sde.drift(at_start, first, first.x))  # raises if it contains a mean over draws
    given = isinstance(sde, QueriedSDE) or is_own(sde)  # their diffusion may mix coordinates
    diagonal = bound.independent and sde.noise_shape == (problem.dim,) and not given
    stratonovich = isinstance(base, diffrax.AbstractStratonovichSolver)
    bridge = DiffraxSDE(solver, sde, begin, float(optimizer.lr), stratonovich, diagonal)
    additive = isinstance(base, diffrax.AbstractSRK) and base.tableau.is_additive_noise()
    constant = isinstance(optimizer, SGD | Momentum | AdamW) or is_own(sde)
    if additive and not (constant and _is_additive(bridge)):
        raise ValueError(
            f"solver: {type(base).__name__} is for additive noise, but the diffusion of {optimizer.name}'s SDE depends "
            "on the state here; use diffrax.SPaRK() or diffrax.GeneralShARK()."
        )
    return bridge


def _is_additive(bridge: DiffraxSDE) -> bool:
    """Whether the diffusion is the same at the start and at a random point near it."""
    rng = np.random.default_rng(0)
    at = bridge.y0(jax.random.key(0))
    other = jax.tree.map(lambda a: a * (1 + rng.uniform(0.1, 0.5, a.shape)) + rng.uniform(0.1, 0.5, a.shape), at)
    other = jax.tree.map(lambda a, b: a.astype(b.dtype), other, at)
    pairs = zip(*(jax.tree.leaves(bridge._diffusion(0.0, y)) for y in (at, other)), strict=True)
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-12) for a, b in pairs)


def _checked_key(key: Any) -> Array:
    if not (isinstance(key, jax.Array) and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32)):
        raise TypeError(f"key: got {key!r}; give a random key, for example jax.random.key(0).")
    return key


def _levy_area(solver: Any) -> Any:
    """The kind of Brownian increments, with the Lévy area that the solver needs."""
    needed = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    kinds = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)
    return next(kind for kind in kinds if issubclass(kind, needed))


def _like(y: State, given: State) -> State:
    """`given` with every component broadcast to the shape and dtype of y's, and without a count."""
    parts = {
        name: None if value is None else jnp.broadcast_to(getattr(given, name), value.shape).astype(value.dtype)
        for name, value in y._asdict().items()
    }
    return State(**parts)
