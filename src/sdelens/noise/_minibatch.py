"""Mini-batch noise as users specify it; the problem determines the law to which it is bound."""

from typing import Any

import equinox as eqx

from sdelens.core import check
from sdelens.core.names import BATCH_COVARIANCES, BATCH_SIGNS
from sdelens.noise._base import AbstractNoise, NoiseLaw
from sdelens.noise._examples import BatchOptions, ExampleLaw
from sdelens.noise.regression import ResamplingLaw, StreamingLaw
from sdelens.problems import AbstractProblem, L2Problem, LinearRegression, Problem

__all__ = ["MinibatchNoise"]


class MinibatchNoise(AbstractNoise):
    r"""The noise of real mini-batches: Z = g − ∇f with g the mean gradient of B examples.

    On a `Problem` with data, networks included, the optimizer draws real mini-batches. With the per-example gradients
    gᵢ, whose mean is ∇f, its SDE needs

        Σ = (1/B)(1/n) Σᵢ (gᵢ − ∇f)(gᵢ − ∇f)ᵀ, times (n − B)/(n − 1) without replacement.

    ``"exact"`` noise has that covariance, including correlations between coordinates, and takes one more backward pass,
    with weights: Σ^{1/2} dW = (1/√(nB)) ∇ Σᵢ (dWᵢ − mean dW) ℓᵢ. The diagonal of Σ, which RMSprop's and Adam's SDEs
    need, requires the squares of all per-example gradients; it is reused for `refresh` steps, and may be estimated from
    a `subsample` of the examples.

    For SignSGD's SDE there are three laws of sign(g):

    - ``"sampled"``: mean and covariance are those of the signs of `samples` mini-batches, which the SDE draws anew;
      this is unbiased, and the cheapest.
    - ``"edgeworth"``: the gradient gᵢ of an example vanishes exactly where a ReLU unit is off, so the number of
      examples in a batch with a gradient that is not 0 is binomial; given that number, g is normal with Edgeworth's
      corrections for skewness and kurtosis. It is in closed form, and only for drawing with replacement. Of the signs'
      correlations, it includes the part that follows from those of the gradient.
    - ``"normal"``: g is treated as normal: E sign(g) = erf(∇f/√(2 Σᵢᵢ)).

    On `LinearRegression` the law is known: covariance and E sign(g) are exact (but for B = 2 or 3 from a small sample,
    E sign(g) has an error of about 0.03). The signs' covariance is exact for B = 1 in one pass; otherwise only its
    diagonal is exact and, for a normal design, its value at ∇f = 0. Options other than `batch_size` do not apply there.

    Args:
        batch_size: B ≥ 1.
        replacement: if True, examples are drawn independently; if False, the optimizer goes through the examples in
            random order, epoch by epoch, with ⌊n/B⌋ batches in each (the SDE treats steps as independent, which they
            are not: within an epoch their noise nearly cancels).
        covariance: covariance of the SDE's noise: ``"exact"``, or ``"diagonal"``, independent coordinates.
        signs: law of sign(g) in SignSGD's SDE.
        samples: number of mini-batches for ``"sampled"`` signs, 2 or more and, for SignSGD, at least `refresh`.
        refresh: number of steps for which second moments, or the law of signs, are reused (E sign(g) is updated with ∇f
            by its slope).
        subsample: number of examples, drawn anew at every refresh, from which second moments are estimated; None takes
            all. Laws of signs in closed form always take all, since rare gradients determine them.

    Raises:
        ValueError, TypeError: if an argument is out of its range, or two do not fit together; and, when it is bound to
            a problem, if that has no or too few examples, or its loss for one example depends on the others.

    Source: the weighted backward pass and the law of signs are derived here and in `noise/_batch_sign.py`; Edgeworth's
    expansion to second order is the textbook one (Feller 1971, *An Introduction to Probability Theory*, XVI.4).
    """

    options: BatchOptions = eqx.field(static=True)

    def __init__(
        self,
        batch_size: int,
        *,
        replacement: bool = True,
        covariance: str = "exact",
        signs: str = "sampled",
        samples: int = 8,
        refresh: int = 1,
        subsample: int | None = None,
    ) -> None:
        if not isinstance(replacement, bool):
            raise TypeError(f"replacement: got {replacement!r}; give True or False.")
        self.options = BatchOptions(
            check.at_least("batch_size", batch_size, 1),
            replacement,
            check.choice("covariance", covariance, BATCH_COVARIANCES),
            check.choice("signs", signs, BATCH_SIGNS),
            check.at_least("samples", samples, 2),
            check.at_least("refresh", refresh, 1),
            None if subsample is None else check.at_least("subsample", subsample, 2),
        )
        if signs == "edgeworth" and not replacement:
            raise ValueError(
                "signs: 'edgeworth' is known for examples drawn with replacement; use 'sampled' or 'normal' for epochs."
            )

    @property
    def batch_size(self) -> int:
        """B."""
        return self.options.batch_size

    def bind(self, problem: AbstractProblem) -> NoiseLaw:
        if isinstance(problem, LinearRegression):
            self._refuse_options()
            kind = StreamingLaw if problem.samples is None else ResamplingLaw
            return kind(problem, self.batch_size)
        inner: AbstractProblem = problem
        strength = 0.0
        while isinstance(inner, L2Problem):
            strength += inner.strength
            inner = inner.problem
        if isinstance(inner, LinearRegression):
            raise TypeError(
                "noise: mini-batches are not known for sl.LinearRegression with an L2 term; use the optimizer's "
                "weight_decay, or an sl.Problem with the examples as data."
            )
        if not isinstance(inner, Problem) or inner.examples is None:
            raise TypeError(
                "noise: mini-batches need a problem with examples, sl.Problem(loss, start, data), sl.network(...) or "
                f"sl.LinearRegression; got {type(inner).__name__}"
                + (" without data" if isinstance(inner, Problem) else "")
                + ". Use another noise, for example sl.GaussianNoise."
            )
        drawn = 0 if self.options.replacement else self.batch_size
        for name, size in (("batch_size", drawn), ("subsample", self.options.subsample)):
            if size is not None and size > inner.examples:
                raise ValueError(f"{name}: got {size}; the problem has {inner.examples} examples.")
        inner.check_examples()
        return ExampleLaw(inner, strength, self.options)

    def at_batch_ratio(self, ratio: float) -> "MinibatchNoise":
        """Exact: mini-batches `ratio` times as large, which must be a whole number of examples."""
        size = check.positive("ratio", ratio) * self.batch_size
        if abs(size - round(size)) > 1e-9 * size or round(size) < 1:
            raise ValueError(f"ratio: got {ratio:g}, at which a batch of {self.batch_size} is {size:g} examples.")
        return MinibatchNoise(**self.options._replace(batch_size=round(size))._asdict())

    def describe(self) -> dict[str, Any]:
        return {"name": "minibatch", "batch_size": self.batch_size}

    def _refuse_options(self) -> None:
        plain = MinibatchNoise(self.batch_size).options
        for name, given, usual in zip(plain._fields, self.options, plain, strict=True):
            if given != usual:
                raise ValueError(
                    f"{name}: got {given!r}; on sl.LinearRegression mini-batches are drawn with replacement and their "
                    "law is known, so leave it out."
                )
