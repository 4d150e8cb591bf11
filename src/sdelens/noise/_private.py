"""Differentially private gradients: clipped for each example, averaged, with normal noise."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from sdelens.core import check
from sdelens.noise._base import AbstractNoise, NoiseLaw
from sdelens.noise._clipped import ClippedLaw
from sdelens.noise._examples import ExampleLaw
from sdelens.noise._joined import JoinedLaw
from sdelens.noise._minibatch import MinibatchNoise
from sdelens.noise.gaussian import IndependentNormal
from sdelens.problems import AbstractProblem, L2Problem, LinearRegression

__all__ = ["DPNoise"]


class DPNoise(AbstractNoise):
    r"""The stochastic gradient of DP-SGD: per-example gradients clipped to norm C, averaged, plus normal noise.

    g = (1/B) Σ_{i in batch} cᵢgᵢ + (sC/B) ξ,  cᵢ = min(1, C/‖gᵢ‖),  ξ ~ N(0, I).

    With `SGD` as the optimizer it is DP-SGD, with `SignSGD` DP-SignSGD, with `AdamW` DP-Adam. Its mean is not ∇f but
    that of the clipped gradients, ∇_C = (1/n) Σᵢ cᵢgᵢ, which takes the place of ∇f in every SDE and in accumulators
    that start at their means. The covariance is that of mini-batches of clipped gradients plus (sC/B)² I, exact with
    all correlations, by backward passes with weights; it costs one pass for the norms ‖gᵢ‖, and needs no matrix.

    For SignSGD's SDE, E sign(g) and Cov sign(g) are exact in the normal noise, given the mean clipped gradients of
    `samples` mini-batches that the SDE draws. With ``signs="normal"`` of `MinibatchNoise`, g is treated as normal.
    Mini-batches of all n examples without replacement have no noise of their own, and the law of the signs is exact.

    Privacy budgets are not computed here: see dp-accounting, or the accountants of Opacus and jax-privacy, for (ε, δ)
    from `multiplier` s, B/n, the number of steps and how batches are drawn (accountants assume Poisson sampling).

    Args:
        noise: how mini-batches are drawn, and the options of their SDE. ``signs="edgeworth"`` is not known here.
        clip: C > 0.
        multiplier: s ≥ 0, the noise multiplier. With 0 gradients are clipped only.
        poisson: if True, every example is in a batch with probability B/n, and the sum is divided by B; needs
            ``replacement=True`` of `noise`, which then has no other meaning. Each step costs the gradients of all n.

    Raises:
        ValueError, TypeError: if an argument is out of its range; and, when it is bound, if the problem has no
            examples of its own, or an L2 term beside its loss.

    Source: Abadi et al. 2016 (arXiv 1607.00133) for the algorithm; Monzio Compagnoni et al. 2026 (arXiv 2603.03226) for
    the study of DP-SGD and DP-SignSGD by SDEs. Mean, covariance and the law of signs are derived here from the
    algorithm itself, for the given examples at every x.

    Examples:
        >>> import sdelens as sl
        >>> noise = sl.DPNoise(sl.MinibatchNoise(32), clip=1.0, multiplier=0.8)
    """

    noise: MinibatchNoise
    clip: Any
    multiplier: Any
    poisson: bool = eqx.field(static=True)

    def __init__(self, noise: MinibatchNoise, clip: float, multiplier: float, poisson: bool = False) -> None:
        if not isinstance(noise, MinibatchNoise):
            kind = noise.__name__ if isinstance(noise, type) else type(noise).__name__
            raise TypeError(f"noise: got {kind}; give mini-batches, for example sl.MinibatchNoise(32).")
        if not isinstance(poisson, bool):
            raise TypeError(f"poisson: got {poisson!r}; give True or False.")
        if noise.options.signs == "edgeworth":
            raise ValueError("signs: 'edgeworth' is not known for clipped gradients; use 'sampled' or 'normal'.")
        if poisson and not noise.options.replacement:
            raise ValueError("poisson: got True with mini-batches that form epochs; leave replacement=False out.")
        self.noise, self.poisson = noise, poisson
        self.clip = check.positive("clip", clip)
        self.multiplier = check.nonnegative("multiplier", multiplier)

    def bind(self, problem: AbstractProblem) -> NoiseLaw:
        if isinstance(problem, LinearRegression):
            raise TypeError(
                "noise: gradients of single examples are not clipped for sl.LinearRegression, whose batches are drawn "
                "from their law; give an sl.Problem with the examples as data."
            )
        if isinstance(problem, L2Problem):
            raise TypeError(
                "noise: per-example gradients cannot be clipped together with an L2 term beside the loss; use the "
                "optimizer's weight_decay, or add the term to the loss of every example."
            )
        own = self.noise.bind(problem)
        assert isinstance(own, ExampleLaw)
        options = own.options
        if self.poisson and options.batch_size > own.examples:
            raise ValueError(f"batch_size: got {options.batch_size}; the problem has {own.examples} examples.")
        dtype = problem.start.dtype
        clipped = ClippedLaw(own.problem, own.strength, options, None, jnp.asarray(self.clip, dtype), self.poisson)
        scale = jnp.asarray(self.multiplier * self.clip / options.batch_size, dtype)
        return PrivateLaw((clipped, IndependentNormal(scale)), 1, None, self.clip, self.multiplier)

    def at_batch_ratio(self, ratio: float) -> "DPNoise":
        """Exact: batches `ratio` times as large with the same C and s, so that the normal noise falls as 1/`ratio`."""
        return DPNoise(self.noise.at_batch_ratio(ratio), self.clip, self.multiplier, self.poisson)

    def describe(self) -> dict[str, Any]:
        own = {"noise": self.noise.describe(), "clip": float(self.clip), "multiplier": float(self.multiplier)}
        return {"name": "dp", **own, **({"poisson": True} if self.poisson else {})}


class PrivateLaw(JoinedLaw):
    """The law of `DPNoise` on a problem: mini-batches of clipped gradients, and normal noise.

    Attributes:
        clip: C as the user gave it.
        multiplier: s.
    """

    clip: Any = None
    multiplier: Any = None

    def describe(self) -> dict[str, Any]:
        own = self.terms[0].describe()
        more = {"clip": float(self.clip), "multiplier": float(self.multiplier)}
        poisson = {"poisson": True} if own.pop("poisson", False) else {}
        own.pop("clip")
        return {"name": "dp", "noise": {**own, "name": "minibatch"}, **more, **poisson}
