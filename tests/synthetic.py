"""Synthetic runs whose true signal and noise are known, with gradients of ten kinds, diagnosed and compared."""

import numpy as np

import sdelens as sl
from sdelens.diagnosis.expected import path_error

KINDS = (
    "steady",
    "oscillating",
    "drifting",
    "growing noise",
    "correlated",
    "epochs",
    "skewed",
    "sparse",
    "heavy-tailed",
    "layers",
)
_EPOCH = 20
_GROWTH = 2.885
"""Steps in which a gradient grows by e if its square doubles in one step."""


class Run:
    """Adam's moments after some hundred gradients f + σz, with what was true at the last step.

    Args:
        kind: one of `KINDS`; with "layers" there are two to four groups of different SNR.
        seed: decides the betas, sizes, SNRs (from 0.05 to 4), the scales of the coordinates, and all draws.
    """

    def __init__(self, kind, seed):
        self.kind, self.rng = kind, np.random.default_rng([22, seed])
        rng = self.rng
        self.betas = rng.choice([0.8, 0.9, 0.95]), rng.choice([0.95, 0.99, 0.999])
        steps = int(rng.integers(100, 500))
        self.sizes = rng.integers(300, 1500, rng.integers(2, 5) if kind == "layers" else 1)
        self.owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        size = len(self.owner)
        self.sigma = np.exp(rng.uniform(0, 1) * rng.standard_normal(size))
        self.shape = self.sigma * np.where(rng.random(size) < 0.5, -1, 1) * np.exp(0.5 * rng.standard_normal(size))
        snr = np.exp(rng.uniform(np.log(0.05), np.log(4), len(self.sizes)))
        self.shape *= (snr * np.sqrt(self._sums(self.sigma**2) / self._sums(self.shape**2)))[self.owner]
        self.phase, self.period = rng.uniform(0, 2 * np.pi, size), rng.uniform(2, 30)
        # At the fastest, squares double in 250 steps, or in a quarter of the run, which is what is allowed for.
        self.grows, self.growth = rng.random() < 0.5, _GROWTH * min(250, steps / 4) * np.exp(rng.uniform(0, 1))
        self.decline, self.correlation = np.exp(rng.uniform(np.log(30), np.log(1000))), rng.uniform(-0.5, 0.5)
        self.df, self.held, self.pool = rng.uniform(2.5, 5), None, None
        window, m, v = int(rng.integers(20, min(100, steps - 1))), 0.0, 0.0
        for k in range(steps):
            signal, scale = self._at(k, steps - 1)
            g = signal + scale * self._noise(k)
            m, v = (b * old + (1 - b) * new for b, old, new in zip(self.betas, (m, v), (g, g * g), strict=True))
            if k == steps - 1 - window:
                self.earlier = self._state(m, v, k + 1)
        self.state, self.last = self._state(m, v, steps), (signal, scale)
        self.signal, self.noise = self._sums(signal**2), self._sums(scale**2)
        self.snr = np.sqrt(self.signal.sum() / self.noise.sum())

    def diagnosed(self):
        """From the moments of one state, and of two."""
        b1, b2 = self.betas
        return [sl.diagnose(self.state, b1=b1, b2=b2, earlier=earlier) for earlier in (None, self.earlier)]

    def measured(self):
        """From fresh gradients at the last step, with limits of 99.9 %."""
        signal, scale = self.last
        kind = self.kind if self.kind in ("skewed", "sparse", "heavy-tailed") else "steady"
        draws = [self._tree(signal + scale * self._draw(kind)) for _ in range(int(self.rng.integers(10, 60)))]
        noise = sl.gradient_noise(draws, confidence=0.999, tails=self.kind == "heavy-tailed")
        return sl.diagnose(noise=noise, batch_size=1)

    def false_verdicts(self, found):
        """What a diagnosis says that is not true."""
        low, high = found.limits
        said = [] if low <= self.snr <= high else [f"limits {low} – {high}, but the SNR is {self.snr}"]
        for ratio in (1, 2, 4, 16):
            snr = self.snr * ratio**0.5
            regime = "noise-dominated" if snr <= 0.5 else "mixed" if snr < 2 else "signal-dominated"
            if found.regime_at(ratio) != "unknown" and regime not in found.regime_at(ratio):
                said.append(f"{found.regime_at(ratio)} at {ratio}, but the SNR is {snr}")
            error = path_error(self.signal, self.noise, self.sizes, ratio)
            if ratio > 1 and found.holds(ratio) not in (None, error <= found.tolerance):
                said.append(f"holds({ratio}) is {found.holds(ratio)}, but the error is {error}")
        return said

    def _sums(self, values):
        return np.bincount(self.owner, values)

    def _tree(self, values):
        return {f"g{i}": values[self.owner == i] for i in range(len(self.sizes))}

    def _state(self, m, v, step):
        return {"m": self._tree(m), "v": self._tree(v), "step": step}

    def _at(self, k, last):
        """Gradient and standard deviation of the noise at step k."""
        signal, scale, before = self.shape, self.sigma, last - k
        if self.kind == "oscillating":
            signal = signal * np.sqrt(2) * np.cos(2 * np.pi * k / self.period + self.phase)
        if self.kind == "drifting":
            signal = signal * np.exp(-before / self.growth if self.grows else before / self.decline)
        return signal, scale * np.exp(-before / self.growth) if self.kind == "growing noise" else scale

    def _noise(self, k):
        if self.kind == "correlated":
            fresh = self._draw("steady")
            old = fresh if self.held is None else self.held
            self.held = self.correlation * old + np.sqrt(1 - self.correlation**2) * fresh
            return self.held
        if self.kind == "epochs":  # the batches of an epoch sum to 0
            if k % _EPOCH == 0:
                pool = self.rng.standard_normal((_EPOCH, len(self.owner)))
                self.pool = (pool - pool.mean(axis=0)) * np.sqrt(_EPOCH / (_EPOCH - 1))
            return self.pool[k % _EPOCH]
        return self._draw(self.kind)

    def _draw(self, kind):
        """Independent noise of variance 1."""
        size, rng = len(self.owner), self.rng
        if kind == "skewed":
            return rng.exponential(size=size) - 1
        if kind == "sparse":
            return np.where(rng.random(size) < 0.02, rng.standard_normal(size) / np.sqrt(0.02), 0.0)
        if kind == "heavy-tailed":
            return rng.standard_t(self.df, size) / np.sqrt(self.df / (self.df - 2))
        return rng.standard_normal(size)
