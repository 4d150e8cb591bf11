"""The compiled programs of a run, with what they are called with.

What does not change during a run is found once: the key of what functions of the user read, the compiler options, and
the arguments that are on all devices.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdelens.cases.observables import Observables
from sdelens.core.captured import alike
from sdelens.core.compilation import Traced
from sdelens.core.random import stream_key
from sdelens.integrate import Stepper
from sdelens.run.checkpoint import digest
from sdelens.run.plan import Plan
from sdelens.run.segment import PARAMETERS, PATHS, Carry, CompileKey, RecordRange, placed, segment, start, values
from sdelens.run.sizes import buffer_size

__all__ = ["Programs"]

_PACES: WeakKeyDictionary[Any, dict[int, float]] = WeakKeyDictionary()
"""By the operations of a segment and the steps between records: seconds per record when it was last executed."""


class Programs:
    """The compiled programs of a run, and what they are called with.

    They are those of the code and of the variables that functions of the user read when the object is made.

    Args:
        stepper: what to run.
        plan: sizes and devices.
        offset: subtracted from the loss before the quantiles are computed.
        observables: what is recorded in addition to the loss.
    """

    def __init__(self, stepper: Stepper, plan: Plan, offset: float, observables: Observables | None = None) -> None:
        self.plan, self.offset = plan, offset
        mesh = _mesh(plan)
        self.sharded, self._everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((PATHS,), ()))
        kept = min(plan.own_kept, plan.chunk // plan.width)
        self.stepper, own = alike(stepper)
        self.observables, watched = alike(observables if observables is not None and observables.names else None)
        self.static = CompileKey(mesh, plan.record_every > 1, kept, plan.keep, (own, watched))
        self._of_start = CompileKey(mesh, thinned=False, keep_paths=0, captured=own)  # whatever is recorded
        self.buffer = buffer_size(plan, stepper)

    @property
    def watched(self) -> int:
        """Number of watched quantities, the loss and the observables."""
        return 1 if self.observables is None else 1 + len(self.observables.names)

    @cached_property
    def start(self) -> Traced:
        """The program of the initial states."""
        return start.traced(1, *self._to_start)

    @cached_property
    def segment(self) -> Traced:
        """The program of a segment."""
        return segment.traced(_repeats(self.plan), *self._to_move)

    @property
    def pace(self) -> float | None:
        """Seconds per record when this program was last executed with as many steps between records; None if never."""
        return self._paces.get(self.plan.record_every)

    def timed(self, steps: int, seconds: float) -> None:
        """Remember how long a segment took, for later runs of the same program."""
        if steps:
            self._paces[self.plan.record_every] = seconds / steps * self.plan.record_every

    @cached_property
    def _paces(self) -> dict[int, float]:
        return _PACES.setdefault(self.segment.jaxpr, {})

    def compilations(self) -> tuple[Callable[[], Any] | None, ...]:
        """Functions that compile what is not compiled yet, see `Traced.compilation`."""
        found = [self.start, self.segment]
        if self.plan.moments:
            stepper, observables, carry, *_ = self._to_move
            chosen = np.array(self.plan.marginals, np.int32)
            found.append(values.traced(1, stepper, observables, carry, chosen, 0, self.static))
        return tuple(traced.compilation() for traced in found)

    def fingerprint(self) -> str:
        """SHA-256 of what a run computes: the code of its start and of its segments, and the numbers in them.

        It changes if any function changes from which the code was traced, wherever that function is defined.
        """
        code = start.lower(*self._to_start).as_text() + segment.lower(*self._to_move[:-1], 1).as_text()
        return digest((self.stepper, self.observables), code)

    def placed(self) -> tuple[Stepper, Observables | None]:
        """Stepper and observables with their arrays on all devices, so that segments need not transfer them."""
        leaves, tree = jax.tree.flatten((self.stepper, self.observables))
        arrays = {id(leaf): leaf for leaf in leaves if isinstance(leaf, jax.Array)}
        everywhere = dict(zip(arrays, jax.device_put(list(arrays.values()), self._everywhere), strict=True))
        found: tuple[Stepper, Observables | None]
        found = jax.tree.unflatten(tree, [everywhere.get(id(leaf), leaf) for leaf in leaves])
        return found

    def started(self, stepper: Stepper, paths: Array, seed: int, stream: str) -> Carry:
        """The initial states of some paths."""
        key = stream_key(seed, f"start/{stream}")
        carry: Carry = self.start.function(stepper, paths, key, self.plan.own.stop, self._of_start)
        return carry

    @cached_property
    def _to_start(self) -> tuple[Any, ...]:
        """The arguments of `start`; arrays are replaced by their shapes."""
        paths = jax.ShapeDtypeStruct((self.plan.chunk,), np.uint32, sharding=self.sharded)
        key = jax.ShapeDtypeStruct((2,), np.uint32)
        return self._shapes(self.stepper), paths, key, self.plan.own.stop, self._of_start

    @cached_property
    def _to_move(self) -> tuple[Any, ...]:
        """The arguments of `segment`; arrays are replaced by their shapes."""
        stepper, paths, key, *_ = self._to_start
        carry = placed(self.start.shapes, self.static)
        span = RecordRange(0, 1, self.plan.steps, self.plan.record_every, self.offset)
        return stepper, self._shapes(self.observables), carry, paths, key, span, self.static, self.buffer

    def _shapes(self, tree: Any) -> Any:
        def shape(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array):
                return leaf
            weak = leaf.aval.weak_type
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._everywhere, weak_type=weak)

        return jax.tree.map(shape, tree)


def _mesh(plan: Plan) -> Mesh:
    """The mesh of the devices."""
    shape, axes = (plan.width, plan.parameter_shards), (PATHS, PARAMETERS)
    split = 2 if plan.parameter_shards > 1 else 1
    return Mesh(np.array(plan.devices).reshape(shape[:split]), axes[:split])


def _repeats(plan: Plan) -> int:
    """How often the compiled step is executed on the devices in total, by all runs that share the programs."""
    return plan.runs * plan.steps * plan.width * -(-len(plan.own) // plan.chunk)
