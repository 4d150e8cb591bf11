"""The stability threshold of gradient descent with momentum: which curvature a learning rate allows."""

__all__ = ["threshold"]


def threshold(b1: float = 0.0, *, nesterov: bool = False, kept: float = 0.0) -> float:
    r"""The number below which lr times the (preconditioned) sharpness λ must stay, for damped momentum.

    m ← β₁m + (1 − β₁)λx, x ← αx − ηm is stable iff its characteristic polynomial is positive at −1:
    ηλ < (1 + α)(1 + β₁)/(1 − β₁), and in Nesterov's form ηλ < (1 + α)(1 + β₁)/((1 − β₁)(1 + 2β₁)).

    Args:
        b1: β₁ in [0, 1).
        nesterov: Nesterov's form.
        kept: 1 − α, the decay of one step, if it does not depend on the learning rate.
    """
    return (2 - kept) * (1 + b1) / ((1 - b1) * (1 + 2 * b1 * nesterov))
