"""What is logged of a `GradientNoise`, as a flat dict of numbers."""

import math
from typing import Final

from sdelens.diagnosis._noise import GradientNoise

__all__ = ["KEYS", "logged"]

KEYS: Final = (
    *("noise_scale", "noise_scale_lower", "noise_scale_upper"),
    *("noise_scale_l1", "noise_scale_l1_lower", "noise_scale_l1_upper"),
    *("noise_scale_nuclear", "noise_scale_nuclear_lower", "noise_scale_nuclear_upper"),
    *("snr", "snr_lower", "snr_upper", "gradient_norm", "noise_trace", "micro_batches"),
)


def logged(noise: GradientNoise | None, prefix: str = "") -> dict[str, float]:
    """The numbers `KEYS`, each with `prefix` before its name; what is not known is NaN.

    Args:
        noise: what was measured; None if too little was.
        prefix: what is written before every name.
    """
    found = dict.fromkeys(KEYS, math.nan) | {"micro_batches": 0.0}
    if noise is not None:
        square = noise.gradient_square
        per_sample = noise.trace * (1.0 if noise.per == "sample" else noise.batch_size)
        found |= {"noise_scale": noise.noise_scale(), "snr": noise.snr(), "noise_trace": per_sample}
        found |= {"gradient_norm": math.sqrt(square) if square >= 0 else math.nan, "micro_batches": float(noise.count)}
        found |= dict(zip(("noise_scale_lower", "noise_scale_upper"), noise.noise_scale_limits(), strict=True))
        found |= dict(zip(("snr_lower", "snr_upper"), noise.snr_limits(), strict=True))
        for norm in noise.dual_norms:
            low, high = noise.noise_scale_limits(norm=norm)
            found |= {f"noise_scale_{norm}": noise.noise_scale(norm=norm)}
            found |= {f"noise_scale_{norm}_lower": low, f"noise_scale_{norm}_upper": high}
    return {prefix + name: value for name, value in found.items()}
