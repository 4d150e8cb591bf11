r"""How well one mean curve tracks another: relative L2 errors with Monte-Carlo noise taken out and bounded.

Everything is a function of group means: paths are split into G groups, and each curve is the weighted mean of its
groups' curves a_g (R recorded steps). With â, b̂ the two means and D = â − b̂,

    error² = (‖D‖² − tr Ĉ) / (‖b̂ − b_min‖² − tr Ĉ_b),    floor² = tr Ĉ / (‖b̂ − b_min‖² − tr Ĉ_b),

where Ĉ is the covariance of D estimated from the scatter of the groups: E‖D‖² = ‖δ‖² + tr C for the true difference δ,
so the bias of the naive error is removed, and the floor is what a perfect model would show without that.

Limits are by the basic (pivotal) bootstrap over groups: resampled curves give T* − ‖D‖², whose distribution stands for
that of the estimate about the truth. In the bootstrap's world the true difference is D, which is longer than δ, so the
pivot is wider than need be and the limits err on the safe side (checked by simulation in the tests). All resamples are
quadratic forms in one Gram matrix, so their cost does not depend on the number of recorded steps.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Curves", "TrackingError", "tracking_error"]


class Curves(NamedTuple):
    """Group means of one model.

    Attributes:
        groups: mean loss per group and recorded step, shape (G, R).
        counts: paths per group, shape (G,).
        stream: name of the stream of random numbers; two models on one stream are compared path by path.
    """

    groups: np.ndarray
    counts: np.ndarray
    stream: str


class TrackingError(NamedTuple):
    """Error of one curve against a reference.

    Attributes:
        error: relative L2 error, bias-corrected; 0 where noise explains all of the difference.
        lower: lower confidence limit, one-sided.
        upper: upper confidence limit, one-sided.
        floor: relative L2 error that a perfect model would show, on average, without the correction.
        shift: (mean of the curve − mean of the reference) / (mean of the reference − b_min), signed.
        shift_lower: its lower limit, one-sided.
        shift_upper: its upper limit, one-sided.
    """

    error: float
    lower: float
    upper: float
    floor: float
    shift: float
    shift_lower: float
    shift_upper: float


def tracking_error(
    curve: Curves,
    reference: Curves,
    minimum: float,
    confidence: float = 0.99,
    resamples: int = 4000,
    seed: int = 0,
) -> TrackingError:
    """Bias-corrected relative L2 error of `curve` against `reference`, with one-sided confidence limits.

    Args:
        curve: the model's group means.
        reference: the reference's group means.
        minimum: b_min, from which the loss is measured.
        confidence: one-sided confidence of each limit.
        resamples: bootstrap resamples.
        seed: their seed.

    Returns:
        The error and its limits; NaN throughout where a group has no finite path at some step, and NaN limits where
        there are fewer than two groups.
    """
    a, b = curve.groups, reference.groups
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return TrackingError(*[np.nan] * 7)
    paired = curve.stream == reference.stream and a.shape[0] == b.shape[0]
    model = _Bootstrap(a, b, curve.counts, reference.counts, minimum, paired)
    point = model.statistics(*model.weights(np.ones((1, a.shape[0])), np.ones((1, b.shape[0]))))
    error2, floor2 = float(point.error2[0]), float(point.floor2[0])
    error, floor, shift = np.sqrt(max(error2, 0.0)), np.sqrt(floor2), float(point.shift[0])
    if min(a.shape[0], b.shape[0]) < 2:
        return TrackingError(error, np.nan, np.nan, floor, shift, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    draws_a = rng.multinomial(a.shape[0], np.full(a.shape[0], 1 / a.shape[0]), resamples)
    draws_b = draws_a if paired else rng.multinomial(b.shape[0], np.full(b.shape[0], 1 / b.shape[0]), resamples)
    star = model.statistics(*model.weights(draws_a, draws_b))
    pivot = star.error2 - (error2 + floor2)
    tails = np.quantile(pivot, [confidence, 1 - confidence])
    lower = np.sqrt(max(error2 - tails[0], 0.0))
    # An estimate that noise has pushed below 0 must not pull the upper limit down with it.
    upper = np.sqrt(max(error2, 0.0) - min(tails[1], 0.0))
    shifts = shift - np.quantile(star.shift - shift, [confidence, 1 - confidence])
    return TrackingError(error, float(lower), float(upper), floor, shift, float(shifts[0]), float(shifts[1]))


class _Statistics(NamedTuple):
    error2: np.ndarray
    floor2: np.ndarray
    shift: np.ndarray


class _Bootstrap:
    """All resamples as quadratic forms in the Gram matrix of the centred group curves."""

    def __init__(
        self, a: np.ndarray, b: np.ndarray, na: np.ndarray, nb: np.ndarray, minimum: float, paired: bool
    ) -> None:
        base = nb @ b / nb.sum()
        a, b, height = a - base, b - base, base - minimum
        self.paired, self.na, self.nb = paired, na, nb
        self.gram_aa, self.gram_ab, self.gram_bb = a @ a.T, a @ b.T, b @ b.T
        self.height2, self.b_height = height @ height, b @ height
        self.mean_a, self.mean_b, self.mean_height = a.mean(axis=1), b.mean(axis=1), height.mean()

    def weights(self, draws_a: np.ndarray, draws_b: np.ndarray) -> tuple[np.ndarray, ...]:
        """Weights of the groups in the mean and in its variance, for draws of shape (resamples, G)."""
        p, u = _weights(draws_a, self.na)
        q, w = _weights(draws_b, self.nb)
        return p, u, q, w

    def statistics(self, p: np.ndarray, u: np.ndarray, q: np.ndarray, w: np.ndarray) -> _Statistics:
        norm2 = _form(p, self.gram_aa) - 2 * np.einsum("ri,ij,rj->r", p, self.gram_ab, q, optimize=True)
        norm2 = norm2 + _form(q, self.gram_bb)
        noise_b = _scatter(q, w, self.gram_bb)
        if self.paired:
            gram = self.gram_aa + self.gram_bb - self.gram_ab - self.gram_ab.T
            noise = _scatter(p, u, gram)
        else:
            noise = _scatter(p, u, self.gram_aa) + noise_b
        scale2 = self.height2 + 2 * q @ self.b_height + _form(q, self.gram_bb) - noise_b
        mean = self.mean_height + q @ self.mean_b
        shift = (p @ self.mean_a - q @ self.mean_b) / mean
        return _Statistics((norm2 - noise) / scale2, noise / scale2, shift)


def _weights(draws: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights p of the mean and u of its variance; resampled means are spread by √(G/(G−1)) about the sample's."""
    groups = draws.shape[1]
    mass = draws * counts
    total = mass.sum(axis=1, keepdims=True)
    centre = counts / counts.sum()
    stretch = np.sqrt(groups / max(groups - 1, 1))
    p = centre + stretch * (mass / total - centre)
    u = draws * (counts / total) ** 2 * stretch**2
    return p, u


def _form(p: np.ndarray, gram: np.ndarray) -> np.ndarray:
    return np.einsum("ri,ij,rj->r", p, gram, p, optimize=True)


def _scatter(p: np.ndarray, u: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Σ_g u_g ‖a_g − Σ_h p_h a_h‖²."""
    return u @ np.diag(gram) - 2 * np.einsum("ri,ij,rj->r", u, gram, p, optimize=True) + u.sum(axis=1) * _form(p, gram)
