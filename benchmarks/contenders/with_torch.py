"""Plain PyTorch, as one who knows it writes it: a loop over steps, all paths at once, in place, without gradients."""

from collections.abc import Callable

import torch

from benchmarks.contenders.task import B2, DECAY, EPS, LR, SIGMA, START, Curve, curvature, recorded

__all__ = ["curve_of", "device", "ensemble"]


def device() -> torch.device:
    """The GPU if there is one that may be used."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def curve_of(losses: torch.Tensor, paths: int) -> Curve:
    """Of losses of shape (records, P)."""
    wide = losses.double()
    return recorded(wide.mean(dim=1).cpu(), wide.std(dim=1, correction=0).cpu(), paths)


def ensemble(optimizer: str, dim: int, every: int) -> Callable[[int, int, int], Curve]:
    """The scheme in as few passes over memory as PyTorch's fused in-place operations allow; shape (P, d)."""
    lam = torch.from_numpy(curvature(dim)).to(device())
    standard = lam * (0.5**0.5 / SIGMA)

    def run(seed: int, paths: int, steps: int) -> Curve:
        generator = torch.Generator(device()).manual_seed(seed)
        x = torch.full((paths, dim), START, device=device())
        v = (lam * x) ** 2 + SIGMA**2
        grad, z, work = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        losses = [0.5 * (lam * x**2).sum(dim=1)]

        def rmsprop() -> None:
            torch.mul(x, lam, out=grad)
            v.mul_(B2).addcmul_(grad, grad, value=1 - B2).add_((1 - B2) * SIGMA**2)
            z.normal_(0.0, SIGMA, generator=generator)
            grad.add_(z)
            torch.sqrt(v, out=work).add_(EPS)
            x.mul_(1 - LR * DECAY).addcdiv_(grad, work, value=-LR)

        def signsgd() -> None:
            torch.mul(x, standard, out=grad).erf_()
            z.normal_(generator=generator)
            torch.mul(grad, grad, out=work).neg_().add_(1).sqrt_().mul_(z).add_(grad)
            x.mul_(1 - LR * DECAY).add_(work, alpha=-LR)

        step = signsgd if optimizer == "signsgd" else rmsprop
        with torch.no_grad():
            for k in range(1, steps + 1):
                step()
                if k % every == 0:
                    losses.append(0.5 * (lam * x**2).sum(dim=1))
        return curve_of(torch.stack(losses), paths)

    return run
