"""A common record of hyperparameters, whatever their original form; here read from plain dicts, without JAX."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

from sdelens.core import check
from sdelens.core.declarations import OPTIMIZERS, canonical_name, scaled_names
from sdelens.core.names import DECAYS

__all__ = ["Hyperparameters", "Reading", "read_dict"]

L2: Final = "l2"
"""Weight decay as part of the gradient: θx is added to g before all other operations."""
_RATES: Final = ("lr", "learning_rate")
_FOLLOWERS: Final = ("initial_lr", "max_lr", "min_lr")
"""Learning rates that PyTorch schedulers store in a parameter group."""
_ALIASES: Final = {
    "b1": ("b1", "beta1", "beta_1"),
    "b2": ("b2", "beta2", "beta_2"),
    "momentum": ("momentum",),
    "alpha": ("alpha",),
    "dampening": ("dampening",),
    "eps": ("eps", "epsilon"),
    "eps_root": ("eps_root",),
    "initial_accumulator": ("initial_accumulator", "initial_accumulator_value"),
    "weight_decay": ("weight_decay",),
}
_UNCHANGED: Final = ("initial_scale", "lr_scale")
"""Numbers that do not depend on the batch size: one that matters only before the first step, and a factor of lr."""
_ABSENT: Final = ("lr_decay", "momentum_decay")
"""Numbers that have no effect if they are 0."""
_CYCLED: Final = ("max_momentum", "base_momentum")
_FLAGS: Final = ("amsgrad", "centered", "nesterov", "decoupled_weight_decay", "eps_in_sqrt", "bias_correction")
_WAYS: Final = ("fused", "foreach", "maximize", "capturable", "differentiable", "mask", "mu_dtype", "accumulator_dtype")
_KEPT: Final = ("optimizer", "params", "param_names", "name", *_FLAGS, *_WAYS)
"""Keys of PyTorch, optax and this library that hold no number to rescale; they are kept as they are."""


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters that scaling rules act on.

    Attributes:
        family: name of the optimizer whose update is used, from `sdelens.core.declarations`.
        lr: η of the damped update, x ← x − η m/… with m a weighted mean of gradients.
        memories: the decays β of running means, by their original names.
        blend: weight of m under a sign (Signum's β₁, which is also a memory; Lion's, which is not), else None.
        undamped: the memory μ whose buffer is a sum of gradients, not a mean, so that the written learning rate is
            η(1 − μ)/damping; None if there is none.
        damping: 1 − PyTorch's dampening.
        eps: ε, None if there is none.
        inside: whether ε is inside the root.
        eps_root: a second ε, inside the root.
        accumulator: Adagrad's initial sum of squares.
        weight_decay: θ.
        decay: ``"coupled"``, ``"independent"`` or ``"l2"``.
    """

    family: str
    lr: float
    memories: Mapping[str, float] = dataclasses.field(default_factory=dict)
    blend: float | None = None
    undamped: str | None = None
    damping: float = 1.0
    eps: float | None = None
    inside: bool = False
    eps_root: float | None = None
    accumulator: float | None = None
    weight_decay: float = 0.0
    decay: str = "coupled"

    @property
    def written_lr(self) -> float:
        """The learning rate in its original convention."""
        return self.lr if self.undamped is None else self.lr * (1 - self.memories[self.undamped]) / self.damping


@dataclass(frozen=True)
class Reading:
    """Hyperparameters that were read, and a function to write new ones back.

    Attributes:
        numbers: the record.
        write: function from a new record to an object like the one that was read.
        assumed: sentences that state what was assumed.
        extra: further learning rates by name, which are scaled like the first.
    """

    numbers: Hyperparameters
    write: Callable[[Hyperparameters], Any]
    assumed: tuple[str, ...] = ()
    extra: Mapping[str, float] = dataclasses.field(default_factory=dict)


def read_dict(given: Mapping[str, Any], decay: str | None = None) -> Reading:
    """Read the hyperparameters of a dict: a hand-written one, PyTorch's arguments or a PyTorch parameter group.

    Args:
        given: ``optimizer`` and its numbers. Keys without numbers are kept, unless they look like a misspelt one.
        decay: how weight decay acts, if the dict does not state it.

    Raises:
        ValueError, TypeError: if a number is missing, out of its range or has no known rule; the message names it.
    """
    name = _named(given)
    declared = OPTIMIZERS[canonical_name(name)]
    family = declared.of_family
    keys, values = _collected(given, family)
    assumed = []
    for key, default in declared.common.items():
        if key not in values:
            values[key], keys[key] = default, (key, None)
            assumed.append(f"{key} was not given; {default:g} is used, the default of PyTorch and optax.")
    if family == "adamw" and "weight_decay" not in values:
        assumed.append(
            "weight_decay was not given; 0 is used (the defaults are 0.01 in PyTorch's AdamW and 1e-4 in optax's)."
        )
    rates = [key for key in _RATES if key in given]
    if len(rates) > 1:
        raise ValueError(f"lr: got two values, as {' and '.join(rates)}; give only one.")
    rate = rates[0] if rates else None
    if rate is None:
        raise ValueError("lr: the dict has no learning rate; add it under the key 'lr'.")
    numbers = _record(name, family, check.positive("lr", given[rate]), values, _decay(given, name, decay))
    if given.get("eps_in_sqrt"):  # the name of optax
        numbers = dataclasses.replace(numbers, inside=True)
    extra = {key: check.nonnegative(key, given[key]) for key in _FOLLOWERS if given.get(key) is not None}

    def write(new: Hyperparameters) -> dict[str, Any]:
        written = dict(given)
        scale = new.written_lr / numbers.written_lr
        written[rate] = given[rate] * scale
        written |= {key: value * scale for key, value in extra.items()}
        found: dict[str, Any] = {
            **new.memories,
            "eps": new.eps,
            "eps_root": new.eps_root,
            "initial_accumulator": new.accumulator,
            "weight_decay": new.weight_decay,
        }
        if values.get("dampening") and new.undamped is None and "momentum" in new.memories:
            found["dampening"] = new.memories["momentum"]
        for ours, (key, index) in keys.items():
            if found.get(ours) is None:
                continue
            if index is None:
                written[key] = found[ours]
            else:
                pair = list(written[key])
                pair[index] = found[ours]
                written[key] = type(given[key])(pair)
        return written

    return Reading(numbers, write, tuple(assumed), extra)


def _named(given: Mapping[str, Any]) -> str:
    """The optimizer's name, as given or inferred from the keys."""
    name = given.get("optimizer")
    if name is not None:
        return check.choice("optimizer", str(name).lower(), scaled_names())
    if "decoupled_weight_decay" in given and "betas" in given:
        return "adamw" if given["decoupled_weight_decay"] else "adam"
    if "alpha" in given:
        return "rmsprop"
    if "dampening" in given:
        return "sgd"
    listed = ", ".join(repr(n) for n in scaled_names())
    raise ValueError(f"optimizer: the dict does not name an optimizer; add the key 'optimizer' with one of {listed}.")


def _collected(given: Mapping[str, Any], family: str) -> tuple[dict[str, tuple[str, int | None]], dict[str, float]]:
    """The key of each number in the dict, and its value, by the library's names.

    Raises:
        ValueError: if there are numbers without a rule, or misspelt keys; the message names them.
    """
    keys: dict[str, tuple[str, int | None]] = {}
    takes = (*OPTIMIZERS[family].accepted, "weight_decay")
    for ours in takes:
        found = [key for key in _ALIASES[ours] if key in given]
        if len(found) > 1:
            raise ValueError(f"{ours}: got two values, as {' and '.join(found)}; give only one.")
        if found:
            keys[ours] = (found[0], None)
    if family == "rmspropw" and isinstance(given.get("decay"), Real):  # optax's name for its b2
        keys["b2"] = ("decay", None)
    if "betas" in given and "b2" in takes:
        twice = [key for ours in ("b1", "b2") if ours in takes for key in _ALIASES[ours] if key in given]
        if twice:
            raise ValueError(f"betas: got two values, as betas and {' and '.join(twice)}; give only one.")
        if isinstance(given["betas"], str) or len(given["betas"]) != 2:
            raise ValueError(f"betas: got {given['betas']!r}; give two numbers.")
        keys |= {"b1": ("betas", 0), "b2": ("betas", 1)} if "b1" in takes else {"b2": ("betas", 1)}
    known = {key for key, _ in keys.values()} | {*_RATES, *_FOLLOWERS}
    known |= {key for key in _UNCHANGED if key in given} | {key for key in _ABSENT if given.get(key) == 0}
    cycled = [key for key in _CYCLED if key in given]
    if cycled:
        raise ValueError(
            f"{cycled[0]}: belongs to a scheduler that changes the momentum (OneCycleLR, CyclicLR) and would undo "
            "the rescaling; give the live scheduler to sdelens.torch.rescale, or remove this key, and create a new "
            "scheduler for the new batch size with the rescaled numbers."
        )
    readable = {*known, *_KEPT, *_UNCHANGED, *_ABSENT, "betas", "decay"}.union(*_ALIASES.values())
    others = [key for key in given if key not in known.union(_KEPT)]
    near = {key: _near(key, readable) for key in others if key not in readable}
    unknown = [key for key in others if near.get(key) or _has_numbers(given[key])]
    if unknown:
        meant = ", ".join(repr(other) for key in unknown if (other := near.get(key)))
        raise ValueError(
            f"optimizer: no scaling rule is known for {', '.join(f'{k} = {given[k]!r}' for k in unknown)} of "
            f"{family}; remove the key, and choose its value for the new batch size yourself. Rules are known for "
            f"{', '.join(('lr', *takes))}." + (f" Did you mean {meant}?" if meant else "")
        )
    checks = dict.fromkeys(("eps", "eps_root", "initial_accumulator", "weight_decay", "dampening"), check.nonnegative)
    values = {
        ours: checks.get(ours, check.fraction)(key, given[key] if index is None else given[key][index])
        for ours, (key, index) in keys.items()
    }
    return keys, values


def _near(key: Any, names: Iterable[str]) -> str | None:
    """The name of which `key` is probably a misspelling: similar, and of nearly the same length."""
    found = difflib.get_close_matches(str(key).lower(), names, n=1, cutoff=0.8)
    return found[0] if found and abs(len(found[0]) - len(str(key))) <= 2 else None


def _has_numbers(value: Any) -> bool:
    """Whether it is a number or a sequence of numbers."""
    if isinstance(value, tuple | list):
        return bool(value) and all(map(_has_numbers, value))
    return isinstance(value, Real) and not isinstance(value, bool)


def _decay(given: Mapping[str, Any], name: str, asked: str | None) -> str:
    """How weight decay acts: as the dict states, else as `asked`, else by the convention of the optimizer."""
    stated = given.get("decay") if isinstance(given.get("decay"), str) else None
    if stated is None and "decoupled_weight_decay" in given:
        stated = "coupled" if given["decoupled_weight_decay"] else L2
    own = L2 if name in ("adam", "rmsprop", "sgd") else "coupled"
    return check.choice("decay", stated or asked or own, (*DECAYS, L2))


def _record(name: str, family: str, lr: float, values: dict[str, float], decay: str) -> Hyperparameters:
    """The record; learning rates of undamped buffers are converted to those of means.

    Raises:
        ValueError: if a number is missing or out of its range; the message names it.
    """
    memories: dict[str, float] = {key: values[key] for key in ("b1", "b2", "momentum", "alpha") if key in values}
    if family in ("momentum", "signum") and not memories:
        raise ValueError(f"b1: the dict has no b1, which {name} needs; add it.")
    if family == "rmspropw" and not {"b2", "alpha"} & memories.keys():
        raise ValueError(
            "b2: the dict has no b2, whose default is 0.99 in PyTorch's RMSprop (alpha) and 0.9 in optax's (decay); "
            "add it."
        )
    if family == "adagrad" and not {"eps", "initial_accumulator"} <= values.keys():
        raise ValueError(
            "initial_accumulator: the dict needs initial_accumulator and eps (inside the root, as in optax), which "
            "change with the batch size; add both."
        )
    blend = values.get("b1") if family in ("signum", "lion") else None
    if family == "lion":
        memories.pop("b1")
    undamped, damping, momentum = None, 1.0, memories.get("momentum", 0.0)
    if momentum == 0:
        memories.pop("momentum", None)
    else:
        family = "momentum" if family == "sgd" else family
        dampening = values.get("dampening", 0.0)
        if dampening >= 1:
            raise ValueError(
                f"dampening: got {dampening:g}; it must be less than 1, because the gradient is multiplied by 1 − "
                "dampening."
            )
        if dampening != momentum:  # if equal, the buffer is a mean, and they are kept equal
            undamped, damping = "momentum", 1 - dampening
            lr = lr * damping / (1 - momentum)
    return Hyperparameters(
        family=family,
        lr=lr,
        memories=memories,
        blend=blend,
        undamped=undamped,
        damping=damping,
        eps=values.get("eps"),
        inside=family == "adagrad",
        eps_root=values.get("eps_root"),
        accumulator=values.get("initial_accumulator"),
        weight_decay=values.get("weight_decay", 0.0),
        decay=decay,
    )
