"""Rescale the state of ``optax.inject_hyperparams``: its hyperparameters and its accumulators."""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from sdelens.scaling.hyperparameters import Hyperparameters, Reading, read_dict
from sdelens.scaling.memory import buffer_gain, clock, square_factor

__all__ = ["read_state"]

_KINDS: Final = {
    "ScaleByAdamState": "adamw",
    "ScaleByLionState": "lion",
    "ScaleByRmsState": "rmsprop",
    "ScaleByRStdDevState": "rmsprop",
    "ScaleByRssState": "adagrad",
    "TraceState": "sgd",
}
"""Optimizers by the state that identifies them; of several states, the first in this order decides."""
_ADAM: Final = frozenset({"learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"})
"""The numbers of optax.adam and optax.adamw."""
_NEEDS: Final = {"adamw": ("b1", "b2", "eps"), "lion": ("b1", "b2"), "rmsprop": ("decay",), "sgd": ("momentum",)}


def read_state(
    state: Any, decay: str | None, ratio: float, accumulators: str, square: float | None = None
) -> tuple[list[Reading], Callable[[list[Any]], Any]]:
    """The hyperparameters in a state, one reading per part that has some, and the function that joins the new parts.

    Raises:
        ValueError: if there are none, the optimizer cannot be identified, or a number that would change is not in
            the state or comes from a schedule.
    """
    found: list[Any] = []

    def collect(part: Any) -> Any:
        found.append(part)
        return part

    _mapped(state, collect)
    if not found:
        raise ValueError(
            "optimizer: the optax state contains no hyperparameters; build the optimizer with "
            "optax.inject_hyperparams(optax.adamw)(learning_rate=..., b1=..., b2=..., eps=..., weight_decay=...)."
        )

    def join(parts: list[Any]) -> Any:
        queue = iter(parts)
        return _mapped(state, lambda _: next(queue))

    return [_read(part, decay, ratio, accumulators, square) for part in found], join


def _mapped(node: Any, change: Callable[[Any], Any]) -> Any:
    """The state with `change` applied to every part that holds hyperparameters."""
    if hasattr(node, "hyperparams") and hasattr(node, "inner_state"):
        return change(node)
    return _inside(node, lambda value: _mapped(value, change))


def _inside(node: Any, change: Callable[[Any], Any]) -> Any:
    """A container with `change` applied to its elements; anything else unchanged."""
    if isinstance(node, dict):
        return {key: change(value) for key, value in node.items()}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*map(change, node))
    return type(node)(map(change, node)) if isinstance(node, tuple | list) else node


def _read(part: Any, decay: str | None, ratio: float, accumulators: str, square: float | None) -> Reading:
    parts: list[str] = []
    _visited(part.inner_state, lambda node: parts.append(type(node).__name__))
    kind = next((kind for name, kind in _KINDS.items() if name in parts), None)
    if kind is None:
        raise ValueError(
            "optimizer: the optimizer cannot be identified from the accumulators in the optax state; give a dict of "
            'its hyperparameters, for example {"optimizer": "signsgd", "lr": 1e-3}.'
        )
    missing = [name for name in _NEEDS.get(kind, ()) if name not in part.hyperparams]
    if missing:
        raise ValueError(
            f"optimizer: the optax state has no injected {', '.join(missing)}, which {kind} changes with the batch "
            "size; inject it by optax.inject_hyperparams."
        )
    if kind == "adamw":
        _require_adam(set(part.hyperparams), parts.count("EmptyState"))
    plain = {name: _plain(value) for name, value in part.hyperparams.items()}
    inside = {"eps_in_sqrt": True} if kind == "rmsprop" else {}
    reading = read_dict({"optimizer": kind, **inside, **plain}, decay)
    assumed = reading.assumed
    if inside:
        assumed += ("eps is taken as inside the root, the default of optax.rmsprop (eps_in_sqrt=True).",)

    def write(new: Hyperparameters) -> Any:
        written = {k: v for k, v in reading.write(new).items() if k in part.hyperparams}
        scheduled = getattr(part, "hyperparams_states", {})
        held = [name for name in scheduled if written.get(name) != plain.get(name)]
        if held:
            raise ValueError(
                f"optimizer: a schedule sets {', '.join(held)} again at every step; inject a number instead, or "
                "rescale the schedule (sl.scaling.ramp makes schedules for a ramp)."
            )
        numbers = {
            name: jnp.asarray(written[name], value.dtype) if written.get(name) != plain[name] else value
            for name, value in part.hyperparams.items()
        }
        inner = _remembered(part.inner_state, reading.numbers, new, ratio, accumulators, square)
        return part._replace(hyperparams=numbers, inner_state=inner)

    return Reading(reading.numbers, write, assumed, reading.extra)


def _require_adam(fields: set[str], empty: int) -> None:
    """Refuse optimizers with Adam's accumulators that are not Adam, from their injected hyperparameters.

    Args:
        fields: names of the hyperparameters.
        empty: number of transformations without a state.

    Raises:
        ValueError: for those of adamax, yogi and radam, and for LAMB, which has one more transformation than AdamW.
    """
    if not {"eps_root"} <= fields <= _ADAM or empty > 2:
        raise ValueError(
            "optimizer: the optax state has the accumulators of Adam, but its hyperparameters "
            f"{', '.join(sorted(fields))} and transformations are not those of optax.adam or optax.adamw (adamax, "
            "yogi, radam and lamb have the same accumulators). If it is Adam, give a dict, "
            '{"optimizer": "adamw", "lr": 1e-3, "b1": 0.9, "b2": 0.999}.'
        )


def _visited(node: Any, visit: Callable[[Any], Any]) -> None:
    visit(node)
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, tuple | list):
        for value in node:
            _visited(value, visit)


def _remembered(
    node: Any, old: Hyperparameters, new: Hyperparameters, ratio: float, accumulators: str, square: float | None
) -> Any:
    """The inner state, converted so that it has the same meaning with the new hyperparameters."""
    name, again = type(node).__name__, (old, new, ratio, accumulators, square)
    if name == "ScaleByAdamState" and accumulators == "scale":

        def squares(v: Any, m: Any) -> Any:
            mean = float(jnp.mean(v)), float(jnp.mean(jnp.square(m)))
            factor = square_factor(old, ratio, int(node.count), *mean) if square is None else square
            return (v * factor).astype(v.dtype)

        count = jnp.asarray(round(int(node.count) / clock(old, new)), node.count.dtype)
        return node._replace(count=count, nu=jax.tree.map(squares, node.nu, node.mu))
    noise = 1 / ratio if square is None else square
    if name == "ScaleByRmsState" and accumulators == "scale":
        return node._replace(nu=jax.tree.map(lambda v: (v * noise).astype(v.dtype), node.nu))
    if name == "ScaleByRStdDevState" and accumulators == "scale":

        def about(v: Any, mean: Any) -> Any:
            return (mean**2 + jnp.maximum(v - mean**2, 0) / ratio).astype(v.dtype)

        return node._replace(nu=jax.tree.map(about, node.nu, node.mu))
    if name == "TraceState":
        gain = buffer_gain(old, new)
        if old.family == "rmspropw" and accumulators == "scale":  # a sum of gradients over √v, which has changed
            gain *= noise**-0.5
        return node._replace(trace=jax.tree.map(lambda u: (u * gain).astype(u.dtype), node.trace))
    return _inside(node, lambda value: _remembered(value, *again))


def _plain(value: Any) -> Any:
    """A 0-d array as the shortest decimal in its precision: float32's 0.9 becomes 0.9."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.floating):
        return float(str(np.asarray(value)))
    return value
