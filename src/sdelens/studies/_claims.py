"""The table of claims, in the order of the report."""

from typing import Final

from sdelens.studies import (
    adaptive_mean_only,
    adaptive_spread,
    any_optimizer,
    closure,
    curvature_coupling,
    decoupled_decay,
    heavy_tails,
    loss_bounds,
    loss_bounds_paper,
    minibatch_noise,
    networks_track,
    noise_cost,
    orders,
    scaling_rules,
    schedule_effects,
    sdes_track,
    sequential_integrator,
    signsgd_phases,
    stationary_laws,
)
from sdelens.studies._study import Study

__all__ = ["STUDIES"]

STUDIES: Final[dict[str, Study]] = {
    module.STUDY.name: module.STUDY
    for module in (
        sdes_track,
        adaptive_mean_only,
        adaptive_spread,
        networks_track,
        orders,
        signsgd_phases,
        loss_bounds_paper,
        loss_bounds,
        noise_cost,
        stationary_laws,
        heavy_tails,
        schedule_effects,
        decoupled_decay,
        curvature_coupling,
        scaling_rules,
        minibatch_noise,
        sequential_integrator,
        closure,
        any_optimizer,
    )
}
"""Every claim, by name."""
