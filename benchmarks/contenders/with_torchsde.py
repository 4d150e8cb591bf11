"""torchsde: `sdeint` with ``method="euler"``, a fixed step and its default `BrownianInterval`, without gradients."""

from collections.abc import Callable

import torch
import torchsde

from benchmarks.contenders.task import B2, DECAY, EPS, LR, SIGMA, START, Curve, curvature
from benchmarks.contenders.with_torch import curve_of, device

__all__ = ["ensemble"]


class _RMSprop(torch.nn.Module):
    """State (X, V) side by side."""

    sde_type = "ito"

    def __init__(self, lam: torch.Tensor) -> None:
        super().__init__()
        self.lam = lam

    def parts(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Drift of all, diffusion of X."""
        x, v = y.chunk(2, dim=1)
        grad = self.lam * x
        new = B2 * v + (1 - B2) * (grad**2 + SIGMA**2)
        root = torch.sqrt(new) + EPS
        return torch.cat([-grad / root - DECAY * x, (new - v) / LR], dim=1), LR**0.5 * SIGMA / root


class _Diagonal(_RMSprop):
    """As the documentation shows; V has a Brownian motion too, which does nothing."""

    noise_type = "diagonal"

    def f_and_g(self, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Drift and diffusion, sharing what they share."""
        drift, size = self.parts(y)
        return drift, torch.cat([size, torch.zeros_like(size)], dim=1)


class _Product(_RMSprop):
    """With the product of diffusion and ΔW written out, d Brownian motions are enough."""

    noise_type = "general"

    def f_and_g_prod(self, t: torch.Tensor, y: torch.Tensor, dW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Drift, and diffusion times ΔW."""
        drift, size = self.parts(y)
        return drift, torch.cat([size * dW, torch.zeros_like(size)], dim=1)


class _SignSGD(torch.nn.Module):
    """State X, diagonal noise."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self, lam: torch.Tensor) -> None:
        super().__init__()
        self.lam = lam

    def f_and_g(self, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Drift and diffusion, sharing what they share."""
        mean = torch.erf(self.lam * y * (0.5**0.5 / SIGMA))
        return -mean - DECAY * y, LR**0.5 * torch.sqrt(1 - mean**2)


def ensemble(optimizer: str, dim: int, every: int, noise: str = "diagonal") -> Callable[[int, int, int], Curve]:
    """Mean loss by `sdeint`; ``noise="product"`` is for RMSprop with d Brownian motions and the product written out."""
    lam = torch.from_numpy(curvature(dim)).to(device())

    def run(seed: int, paths: int, steps: int) -> Curve:
        torch.manual_seed(seed)
        times = torch.arange(0, steps + 1, every, dtype=torch.float64, device=device()) * LR
        x = torch.full((paths, dim), START, device=device())
        motion = None
        if optimizer == "signsgd":
            sde, start = _SignSGD(lam), x
        else:
            sde = _Diagonal(lam) if noise == "diagonal" else _Product(lam)
            start = torch.cat([x, (lam * x) ** 2 + SIGMA**2], dim=1)
            if noise == "product":
                motion = torchsde.BrownianInterval(
                    t0=times[0], t1=times[-1], size=(paths, dim), dtype=x.dtype, device=device()
                )
        with torch.no_grad():
            ys = torchsde.sdeint(sde, start, times, bm=motion, method="euler", dt=LR)
            losses = torch.stack([0.5 * (lam * y[:, :dim] ** 2).sum(dim=1) for y in ys])
        return curve_of(losses, paths)

    return run
