"""Find Adam's moments in optax states, PyTorch optimizers and state dicts, `sl.State` and dictionaries of arrays.

This module never imports PyTorch by itself, and imports JAX only for states of JAX.
"""

from collections.abc import Mapping
from typing import Any

from sdelens.diagnosis._identity import unwrapped
from sdelens.diagnosis._optax import STATELESS, from_arrays, leaves_of, walk
from sdelens.diagnosis._state_dict import find_state_dicts, from_state_dict, live
from sdelens.diagnosis._tensor import Source, Tensor

__all__ = ["Source", "Tensor", "in_memory", "leaves_of"]

_SECOND = ("exp_avg_sq", "nu", "v", "square_avg")
_FIELDS = {
    "m",
    "v",
    "mu",
    "nu",
    "exp_avg",
    "exp_avg_sq",
    "square_avg",
    "count",
    "step",
    "b1",
    "b2",
    "x",
    "nu_max",
    "max_exp_avg_sq",
}


def in_memory(state: Any, key: str | None = None) -> Source:
    """The tensors of a state in memory.

    Raises:
        TypeError: if it is of no supported kind.
        ValueError: if there is no optimizer state in it, or more than one and no `key`.
    """
    inside = unwrapped(state)
    if hasattr(inside, "param_groups") and hasattr(inside, "state"):
        return live(inside)
    if isinstance(state, Mapping) and any(second in state for second in _SECOND):
        return _arrays(state)
    if isinstance(state, Mapping) and (key is not None or find_state_dicts(state)):
        return from_state_dict(state, key, "state")
    if isinstance(state, Mapping | tuple | list) or hasattr(state, "opt_state") or hasattr(state, "inner_state"):
        return _optax(state)
    raise TypeError(
        f"state: got {type(state).__name__}; give an optax state, a PyTorch optimizer or its state_dict(), the path of "
        "a checkpoint, an sl.State, or a dictionary with m, v and step."
    )


def _arrays(state: Mapping[Any, Any]) -> Source:
    """The user's own dictionary of arrays."""
    others = [str(name) for name in state if str(name) not in _FIELDS]
    if others:
        raise ValueError(
            f"state: besides the moments it has {', '.join(others)}, which Adam has not, so that they may be those of "
            "another optimizer; if they are means of gradients and of their squares, give only m, v and step."
        )
    return from_arrays(state, "")


def _optax(state: Any) -> Source:
    found = list(walk(state))
    if found:
        return iter(found)
    if isinstance(state, Mapping):
        listed = ", ".join(str(k) for k in list(state)[:8])
        raise ValueError(
            f"state: it contains no optimizer state (its content: {listed}); give optimizer.state_dict(), an "
            "optax state, or a dictionary with m, v and step."
        )
    if not _is_optax(state):
        raise ValueError(
            "state: it contains no moments (mu and nu, m and v, or exp_avg and exp_avg_sq); give the state of an Adam "
            "optimizer as tx.init or tx.update returns it, a PyTorch optimizer, or the path of a checkpoint."
        )
    return iter([Tensor("state", reason=STATELESS)])


def _is_optax(state: Any) -> bool:
    """Whether it consists of optax states, which are named tuples, in tuples."""
    if hasattr(state, "opt_state"):
        return True
    if hasattr(state, "_fields"):
        return type(state).__module__.partition(".")[0] == "optax"
    return isinstance(state, tuple | list) and bool(state) and all(_is_optax(part) for part in state)
