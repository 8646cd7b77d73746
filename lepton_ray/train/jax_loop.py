"""The training loop of Keras on JAX: the contract of ``keras_loop``, from the same parts, on all devices of all workers.

An epoch is one compiled program that holds the data on each device and scans over its steps; where batches are augmented, which
NumPy does, each step is a program. A device takes its rows of a batch through the model, gradients are summed over devices
(``psum``), and all take the same step. What is compiled has fixed shapes, so a device's rows are filled up by rows of weight 0.

Legend: S steps, R rows of this worker (of one device within a program), M metrics.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.core.errors import EngineError
from lepton_ray.engine.jax import jax, multihost
from lepton_ray.engine.keras import call, keras
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.batches import Batches, Share, validation_rows
from lepton_ray.train.keras_loss import sums
from lepton_ray.train.keras_state import (
    TrainState,
    generators_of,
    is_varied,
    num_parameters,
    rates,
    row_batches,
    run_epochs,
    run_forward,
    seed_layers,
    start_state,
    take_step,
)
from lepton_ray.train.progress import METRICS
from lepton_ray.train.rows import Labels, TrainData

__all__ = ["Group", "is_any", "join_workers", "num_parameters", "start_state", "train_epochs"]

_DEVICES = "devices"
_JOINED = jax.sharding.PartitionSpec(_DEVICES)
_JOINED_STEPS = jax.sharding.PartitionSpec(None, _DEVICES)
_EQUAL = jax.sharding.PartitionSpec()

Tensor = Any
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """This process among the workers of a training."""

    rank: int = 0
    world_size: int = 1


def join_workers(rank: int, world_size: int) -> Group:
    """Return the group of the processes that JAX has joined.

    Raises:
        EngineError: If they are not all workers of the training.
    """
    there = (jax.process_index(), jax.process_count())
    if there != (rank, world_size):
        raise EngineError(
            f"train: JAX must join all workers, here as {rank} of {world_size}, got {there[0]} of {there[1]}. See the Ray logs"
        )
    return Group(rank, world_size)


def is_any(flag: bool, group: Group) -> bool:
    """Return whether any worker says so, on all workers."""
    return bool(np.any(multihost.process_allgather(np.array([flag]))))


def train_epochs(
    state: TrainState, data: TrainData, spec: TrainSpec, seed: int, group: Group | None = None
) -> Iterator[TrainState]:
    """Train, yielding the state after each epoch, until ``spec.epochs`` or early stopping."""
    program = _Program(state, data, spec, group or Group())
    run_epoch = (_run_varied if is_varied(spec.augment) else _run_whole)(program, data, spec, seed)

    def feed(state: TrainState) -> Floats:
        seed_layers(state.model, seed, state.epoch, 0)  # devices draw apart from each other within the program
        return run_epoch(state.epoch)

    yield from run_epochs(state, data.task, spec, feed, lambda: _evaluate(program, data))


Feed = Callable[[int], Floats]
"""From an epoch, counted from 0, to its training metrics, in the order of ``progress.METRICS``."""


def _run_whole(program: "_Program", data: TrainData, spec: TrainSpec, seed: int) -> Feed:
    """Hold the data on each device and run an epoch as one program; batches are made of the rows' numbers."""
    group, batches = program.group, row_batches(data, spec, seed)
    x = [program.put(values, _EQUAL) for values in data.x_train.values()]

    def feed(epoch: int) -> Floats:
        shares = list(batches.shares(epoch, group.rank, group.world_size))
        filled = [program.fill(share) for share in shares]
        rows, targets, weights = (
            np.stack(parts) for parts in zip(*((f[0][0], f[1], f[2]) for f in filled), strict=True)
        )
        rates_S2 = np.array([rates(spec, epoch, step, batches.num_steps) for step in range(batches.num_steps)])
        batch_weights = np.array([share.batch_weight for share in shares], np.float32)
        values, totals_SM = program.run_epoch(
            program.values(),
            x,
            *(program.put(array, _JOINED_STEPS) for array in (rows[..., 0], targets, weights)),
            *(program.put(array, _EQUAL) for array in (batch_weights, rates_S2)),
        )
        program.keep(values)
        return _sum(totals_SM) / sum(share.batch_weight for share in shares)

    return feed


def _run_varied(program: "_Program", data: TrainData, spec: TrainSpec, seed: int) -> Feed:
    """Run an epoch step by step, on batches that NumPy varies."""
    group, batches = program.group, Batches(data, spec.augment, spec.global_batch_size, seed)

    def feed(epoch: int) -> Floats:
        values, totals, weight = program.values(), [], 0.0
        shares = batches.shares(epoch, group.rank, group.world_size)
        for step, share in enumerate(shares):
            rates_2 = rates(spec, epoch, step, batches.num_steps)
            x, target, weight_R = program.fill(share)
            values, totals_M = program.run_step(
                values,
                [program.put(part, _JOINED) for part in x],
                *(program.put(array, _JOINED) for array in (target, weight_R)),
                *(program.put(array, _EQUAL) for array in (np.array(share.batch_weight, np.float32), rates_2)),
            )
            totals.append(totals_M)
            weight += share.batch_weight
        program.keep(values)
        return _sum(totals) / weight

    return feed


def _sum(totals: Any) -> Floats:
    """Add up in float64 what steps give in float32."""
    added: Floats = np.sum(np.asarray(totals, np.float64), axis=0)
    return added


class _Program:
    """The programs of a training: a step, an epoch of steps, a batch of validation."""

    def __init__(self, state: TrainState, data: TrainData, spec: TrainSpec, group: Group) -> None:
        self.group = group
        self._state, self._spec, self._task = state, spec, data.task
        self._num_outputs = int(state.model.output_shape[-1])
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self._mesh = jax.sharding.Mesh(np.array(devices), (_DEVICES,))
        self._num_local = len(devices) // group.world_size
        unit = 2 if data.task == "ranking" else 1  # a device has both rows of a pair
        rows_per_device = unit * _ceil(_ceil(spec.global_batch_size, group.world_size), self._num_local)
        self._rows_per_pass = rows_per_device
        if spec.max_rows_per_pass is not None:
            self._rows_per_pass = min(
                rows_per_device, max(unit, spec.max_rows_per_pass // self._num_local // unit * unit)
            )
        self._num_rows = _ceil(rows_per_device, self._rows_per_pass) * self._rows_per_pass * self._num_local
        model = state.model
        kept = [] if state.averaged is None else state.averaged.variables
        self._variables = [*model.variables, *state.optimizer.variables, *kept]
        places = {id(variable): place for place, variable in enumerate(self._variables)}
        self._learned = [places[id(variable)] for variable in model.trainable_variables]
        self._statistics = {places[id(v)] for v in model.non_trainable_weights if "float" in v.dtype}
        self._generators = {places[id(variable)] for variable in generators_of(model)}
        joined, steps, equal = _JOINED, _JOINED_STEPS, _EQUAL
        self.run_step = self._compile(self._step, (equal, joined, joined, joined, equal, equal))
        self.run_epoch = self._compile(self._run_epoch, (equal, equal, steps, steps, steps, equal, equal))
        self.run_validation = self._compile(self._run_validation, (equal, joined, joined, joined))

    def _compile(self, function: Callable[..., Any], specs: tuple[Any, ...]) -> Any:
        """Compile what each device runs; ``specs`` say of each argument whether devices have parts of it."""
        program = jax.shard_map(function, mesh=self._mesh, in_specs=specs, out_specs=_EQUAL, check_vma=False)
        return jax.jit(program)

    def put(self, array: NDArray[Any], spec: Any) -> Any:
        """Return a program's array of what this worker has of it."""
        place = jax.sharding.NamedSharding(self._mesh, spec)
        narrow = array.astype(np.int32) if array.dtype == np.int64 else array  # JAX has no int64
        axes = [*spec, *[None] * (narrow.ndim - len(spec))]
        shape = tuple(
            size if axis is None else size * self.group.world_size
            for size, axis in zip(narrow.shape, axes, strict=True)
        )
        return jax.make_array_from_process_local_data(place, narrow, shape)

    def values(self) -> list[Any]:
        """Return the values of all variables as a program takes them."""
        return [self.put(np.array(variable.numpy()), _EQUAL) for variable in self._variables]

    def keep(self, values: Sequence[Any]) -> None:
        """Give the variables the values that a program returned."""
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(np.asarray(value))

    def fill(self, share: Share) -> tuple[list[NDArray[Any]], Labels, NDArray[np.float32]]:
        """Return a share's inputs, targets and weights (R,), filled up by its rows once more with weight 0."""
        places_R, num_rows = np.arange(self._num_rows), len(share.y)
        rows, weight_R = places_R % num_rows, (places_R < (0 if share.is_idle else num_rows)).astype(np.float32)
        return [values[rows] for values in share.x.values()], share.targets(self._num_outputs)[rows], weight_R

    def val_rows(self, data: TrainData) -> int:
        """Return how many rows, or pairs, this worker evaluates at once."""
        each = _ceil(data.num_val_rows, self.group.world_size * self._num_local)
        return min(validation_rows(data), each) * self._num_local

    def _run_epoch(
        self,
        values: list[Tensor],
        x: list[Tensor],
        rows_SR: Tensor,
        targets: Tensor,
        weights_SR: Tensor,
        batch_weights_S: Tensor,
        rates_S2: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the values after all steps, and of each step what ``keras_loss.sums`` does."""

        def body(values: list[Tensor], step: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
            rows_R, *rest = step
            return self._step(values, [part[rows_R] for part in x], *rest)

        result: tuple[list[Tensor], Tensor] = jax.lax.scan(
            body, values, (rows_SR, targets, weights_SR, batch_weights_S, rates_S2)
        )
        return result

    def _step(
        self,
        values: list[Tensor],
        x: list[Tensor],
        target: Tensor,
        weight_R: Tensor,
        batch_weight: Tensor,
        rates_2: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the values after a step and what ``keras_loss.sums`` does of all rows."""
        values, gradients, totals_M = self._gradients(values, (x, target, weight_R), batch_weight)
        gradients, totals_M = jax.lax.psum((gradients, totals_M), _DEVICES)
        with self._holding(values) as scope:
            take_step(self._state, self._spec, gradients, rates_2)
        return self._held(scope), totals_M

    def _gradients(
        self, values: list[Tensor], rows: tuple[Any, ...], batch_weight: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the values after this device's rows, their gradients and sums, one pass after another."""

        def body(carry: tuple[Any, ...], part: tuple[Any, ...]) -> tuple[tuple[Any, ...], None]:
            values, gradients, totals_M = carry
            learned = [values[place] for place in self._learned]
            more, (values, more_M) = jax.grad(self._loss, has_aux=True)(learned, values, *part, batch_weight)
            return (values, [g + m for g, m in zip(gradients, more, strict=True)], totals_M + more_M), None

        nothing = [jax.numpy.zeros_like(values[place]) for place in self._learned]
        start = (values, nothing, jax.numpy.zeros(len(METRICS[self._task])))
        parts = jax.tree.map(lambda array: array.reshape(-1, self._rows_per_pass, *array.shape[1:]), rows)
        (values, gradients, totals_M), _ = jax.lax.scan(body, start, parts)
        means = [
            jax.lax.pmean(value, _DEVICES) if place in self._statistics else value for place, value in enumerate(values)
        ]
        return means, gradients, totals_M

    def _loss(
        self,
        learned: list[Tensor],
        values: list[Tensor],
        x: list[Tensor],
        target: Tensor,
        weight_R: Tensor,
        batch_weight: Tensor,
    ) -> tuple[Tensor, tuple[list[Tensor], Tensor]]:
        """Return what is made smaller and, beside it, the values after the rows and their sums."""
        by_place = dict(zip(self._learned, learned, strict=True))
        values = [by_place.get(place, value) for place, value in enumerate(values)]
        with self._holding(self._apart(values, 1)) as scope:
            totals = run_forward(self._state.model, self._spec, self._task, x, target, weight_R)
        return totals[0] / batch_weight, (self._apart(self._held(scope), -1), jax.numpy.stack(totals))

    def _apart(self, values: list[Tensor], sign: int) -> list[Tensor]:
        """Let this device draw other numbers than others do, or (-1) hold again what they hold."""
        shift = (sign * jax.lax.axis_index(_DEVICES) * np.array([1, 0])).astype(np.uint32)
        return [value + shift if place in self._generators else value for place, value in enumerate(values)]

    def _run_validation(self, values: list[Tensor], x: list[Tensor], y: Tensor, weight_R: Tensor) -> Tensor:
        with self._holding(values):
            totals = sums(self._task, call(self._state.evaluated, x, training=False), y, weight_R)
        return jax.lax.psum(jax.numpy.stack(totals), _DEVICES)

    def _holding(self, values: list[Tensor]) -> Any:
        """Return a scope in which the variables have these values; what is assigned to them stays in it."""
        return keras.StatelessScope(list(zip(self._variables, values, strict=True)))

    def _held(self, scope: Any) -> list[Tensor]:
        return [scope.get_current_value(variable) for variable in self._variables]


def _evaluate(program: _Program, data: TrainData) -> Floats:
    values, totals, num_rows = program.values(), [], data.num_val_rows
    size = program.val_rows(data)
    for start in range(0, num_rows, size * program.group.world_size):
        places = start + size * program.group.rank + np.arange(size)
        rows_R = data.val_order[np.minimum(places, num_rows - 1)]
        weight_R = np.repeat((places < num_rows).astype(np.float32), rows_R.size // size)
        rows = rows_R.ravel()
        x = [program.put(part[rows], _JOINED) for part in data.x_val.values()]
        totals.append(
            program.run_validation(values, x, *(program.put(a, _JOINED) for a in (data.y_val[rows], weight_R)))
        )
    return _sum(totals) / num_rows


def _ceil(number: int, by: int) -> int:
    """Return the quotient, rounded up."""
    return -(-number // by)
