"""The sharpness along a run, compared with the stability limit of the optimizer."""

import numpy as np
import xarray as xr

from sdelens.core.stability import threshold

__all__ = ["sharpness_notes"]

_OVERSHOOTS = 0.5
"""Share of the limit above which a step of gradient descent passes the minimum along the sharpest direction."""
_LIMITED = {"sharpness": ("sgd", "momentum"), "preconditioned_sharpness": ("rmspropw", "adamw")}


def sharpness_notes(dataset: xr.Dataset, optimizer: dict[str, object]) -> list[str]:
    """A sentence for every recorded sharpness that comes near the limit of stability, or exceeds it.

    With ηλ above half of the limit 2, gradient descent passes the minimum in every step; the solution of an SDE, which
    decays like e^{−λt}, never does. For SGD the batch sharpness, which is what hovers about 2/η where the edge of
    stability is reached with mini-batches, is compared too.

    Args:
        dataset: that of a `Result`.
        optimizer: its description.

    Source: Cohen et al. 2021 (arXiv 2103.00065) and 2022 (arXiv 2207.14484), and for batch sharpness Andreyev and
    Beneventano 2024 (arXiv 2412.20553); the thresholds as in `threshold`.
    """
    if "observable" not in dataset.dims:
        return []
    name, found = str(optimizer.get("name")), list[str]()
    b1, lr, kept = (float(str(optimizer.get(key, 0.0))) for key in ("b1", "lr", "weight_decay"))
    kept = kept if optimizer.get("decay") == "independent" else kept * lr
    for observable in dataset.observable.values:
        own = name == "sgd" if observable == "batch_sharpness" else name in _LIMITED.get(str(observable), ())
        if not own:
            continue
        limit = threshold(b1, nesterov=optimizer.get("nesterov") is True, kept=kept) / lr
        along = dataset.observable_mean.sel(observable=observable).values  # (model, step)
        if not np.isfinite(along).any():
            continue
        row, column = np.unravel_index(int(np.nanargmax(along)), along.shape)
        most, model = float(along[row, column]), str(dataset.model.values[row])
        if most >= _OVERSHOOTS * limit:
            found.append(
                f"{observable} reaches {most:.4g} (model {model!r}, step {int(dataset.step.values[column])}), "
                f"{most / limit:.2g} times the limit of stability {limit:.4g} at lr = {lr:g}. From half of the limit "
                "on, steps overshoot along the sharpest direction; no SDE describes this oscillation."
            )
    return found
