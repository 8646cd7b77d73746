"""The training loop in Keras on TensorFlow: the contract of ``torch_loop``, to the meaning of each setting.

An epoch is one call of a graph that holds the data as tensors: its steps are those of a plain loop to the bit, without
Python between them. Where batches are augmented, which NumPy does, or streamed, each step is a call of its own.

A step adds the gradients of all workers' shares up, weighted so that their sum is the gradient of the joined batch. Workers
start from equal weights and take equal steps, so nothing else is exchanged: Keras' own ``fit`` does not synchronise them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.engine.keras import call
from lepton_ray.engine.tensorflow import tf
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.batches import Batches, Share, validation_shares
from lepton_ray.train.keras_layer_groups import set_learning
from lepton_ray.train.keras_loss import sums
from lepton_ray.train.keras_state import (
    TrainState,
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
from lepton_ray.train.rows import Source, TrainData

__all__ = ["Group", "is_any", "join_workers", "num_parameters", "start_state", "train_epochs"]

Tensor = Any


@dataclass(frozen=True)
class Group:
    """This process among the workers of a training; the default is alone."""

    rank: int = 0
    world_size: int = 1
    add_up: Callable[[Sequence[Tensor]], list[Tensor]] = list
    """Sums tensors over all workers; called within a graph."""
    total: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda numbers: numbers
    """Sums numbers over all workers."""


def join_workers(rank: int, world_size: int) -> Group:
    """Meet the other workers where ``TF_CONFIG`` says; the first thing that a process does with TensorFlow."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def add_up(tensors: Sequence[Tensor]) -> list[Tensor]:
        def reduce(values: list[Tensor]) -> Any:
            placed = [tf.identity(value) for value in values]  # all_reduce refuses a tensor that no device has made
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed)

        return list(strategy.run(reduce, args=(list(tensors),)))

    graph = tf.function(lambda numbers: add_up([numbers])[0], [tf.TensorSpec([None], tf.float64)], autograph=False)
    return Group(rank, world_size, add_up, lambda numbers: graph(numbers).numpy())


def is_any(flag: bool, group: Group) -> bool:
    """Return whether any worker says so, on all workers."""
    return bool(group.total(np.array([float(flag)]))[0])


def train_epochs(
    state: TrainState, data: Source, spec: TrainSpec, seed: int, group: Group | None = None
) -> Iterator[TrainState]:
    """Train until ``spec.epochs`` or early stopping, yielding the state after each leg: ``state.step`` is 0 at an epoch's end."""
    group = group or Group()
    trainer = _Trainer(state, data.head, spec, group)
    if isinstance(data, TrainData) and not is_varied(spec.augment):
        run_leg = _run_whole(trainer, data, spec, seed)
    else:
        run_leg = _run_varied(trainer, data, spec, seed)

    def feed(state: TrainState) -> Sequence[float] | None:
        if any([set_learning(model, state.epoch) for model in (state.model, state.averaged) if model is not None]):
            trainer.trace()
        seed_layers(state.model, seed, state.epoch, group.rank, state.step)
        return run_leg(state)

    yield from run_epochs(state, data.head.task, spec, feed, lambda: _evaluate(trainer, data, group))


Feed = Callable[[TrainState], Sequence[float] | None]
"""Trains a leg of the epoch under way; returns the epoch's metrics at its end, in the order of ``progress.METRICS``."""


def _run_whole(trainer: "_Trainer", data: TrainData, spec: TrainSpec, seed: int) -> Feed:
    """Hold the data as tensors and run an epoch as one call; batches are made of the rows' numbers."""
    group = trainer.group
    batches = row_batches(data, spec, seed)
    x = [tf.convert_to_tensor(values) for values in data.x_train.values()]

    def feed(state: TrainState) -> Sequence[float]:
        shares = list(batches.shares(state.epoch, group.rank, group.world_size))
        bounds = np.cumsum([0, *(len(share.y) for share in shares)])
        totals = trainer.run_epoch(
            x,
            np.concatenate([share.x["row"][:, 0] for share in shares]),
            np.concatenate([trainer.targets(share) for share in shares]),
            bounds,
            np.array([_scale(share) for share in shares]),
            np.array([rates(spec, state.epoch, step, batches.num_steps) for step in range(batches.num_steps)]),
        ).numpy()
        return state.add_steps(len(shares), group.total(totals).tolist(), sum(share.batch_weight for share in shares))

    return feed


def _run_varied(trainer: "_Trainer", data: Source, spec: TrainSpec, seed: int) -> Feed:
    """Run a leg step by step, on batches that NumPy makes."""
    group = trainer.group
    batches = Batches(data, spec.augment, spec.global_batch_size, seed)
    shares: Iterator[Share] | None = None

    def feed(state: TrainState) -> Sequence[float] | None:
        nonlocal shares
        if shares is None or state.step == 0:
            shares = batches.shares(state.epoch, group.rank, group.world_size, state.step)
        totals, weight = np.zeros(len(METRICS[batches.task])), state.weight
        first_step = step = state.step
        for step, share in enumerate(itertools.islice(shares, batches.leg_steps), first_step):
            rates_2 = rates(spec, state.epoch, step, batches.num_steps)
            totals += trainer.run_step(list(share.x.values()), trainer.targets(share), _scale(share), rates_2).numpy()
            weight += share.batch_weight
        means = state.add_steps(step + 1 - first_step, group.total(totals).tolist(), weight)
        return means if state.step == batches.num_steps else None

    return feed


def _scale(share: Share) -> NDArray[np.float32]:
    """Return what the share's summed loss is multiplied by to count, and what it is divided by to step."""
    return np.array([0.0 if share.is_idle else 1.0, share.batch_weight], np.float32)


class _Trainer:
    """The graphs of a training: a step, an epoch of steps, a batch of validation."""

    def __init__(self, state: TrainState, data: TrainData, spec: TrainSpec, group: Group) -> None:
        self.group = group
        self._state, self._spec, self._task = state, spec, data.task
        self._num_outputs = int(state.model.output_shape[-1])
        self._has_weights = spec.augment is not None and (
            spec.augment.mixup_alpha > 0 or spec.augment.balance == "weights"
        )
        self._data = data
        self.trace()

    def trace(self) -> None:
        """Make the graphs anew: they hold which weights learn."""
        data = self._data
        x = [tf.TensorSpec([None, *values.shape[1:]], values.dtype) for values in data.x_train.values()]
        rows = tf.TensorSpec([None], tf.int64)
        targets = _target_spec(data, self._num_outputs if self._has_weights else None)
        scales = [tf.TensorSpec([None, 2], tf.float32), tf.TensorSpec([2], tf.float32)]
        self.run_epoch = tf.function(self._run_epoch, [x, rows, targets, rows, scales[0], scales[0]], autograph=False)
        self.run_step = tf.function(self._step, [x, targets, scales[1], scales[1]], autograph=False)
        self.run_validation = tf.function(self._run_validation, [x, _target_spec(data)], autograph=False)

    def targets(self, share: Share) -> Any:
        """Return what ``keras_loss.sums`` takes."""
        return share.targets(self._num_outputs)

    def _run_epoch(
        self, x: list[Tensor], rows: Tensor, targets: Tensor, bounds: Tensor, scales_S2: Tensor, rates_S2: Tensor
    ) -> Tensor:
        """Return what ``keras_loss.sums`` adds up over steps; step s takes ``rows[bounds[s] : bounds[s + 1]]``."""

        def body(step: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
            start, end = bounds[step], bounds[step + 1]
            batch = [tf.gather(values, rows[start:end]) for values in x]
            return step + 1, totals + self._step(batch, targets[start:end], scales_S2[step], rates_S2[step])

        start = (tf.constant(0), tf.zeros(len(METRICS[self._task]), tf.float64))
        num_steps = tf.shape(scales_S2)[0]
        return tf.while_loop(lambda step, _: step < num_steps, body, start, parallel_iterations=1)[1]

    def _step(self, x: list[Tensor], target: Tensor, scale: Tensor, rates_2: Tensor) -> Tensor:
        """Take a step and return what ``keras_loss.sums`` does."""
        gradients, totals = self._gradients(x, target, scale)
        take_step(self._state, self._spec, self.group.add_up(gradients), rates_2)
        return totals

    def _gradients(self, x: list[Tensor], target: Tensor, scale: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the gradients of all rows and what ``keras_loss.sums`` does, one pass after another."""
        size = self._spec.max_rows_per_pass
        if size is None:
            return self._pass(x, target, scale)

        def body(start: Tensor, gradients: list[Tensor], totals: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
            rows = slice(start, start + size)
            more, more_totals = self._pass([values[rows] for values in x], target[rows], scale)
            return start + size, [g + m for g, m in zip(gradients, more, strict=True)], totals + more_totals

        nothing = [tf.zeros_like(variable) for variable in self._state.model.trainable_variables]
        start = (tf.constant(0), nothing, tf.zeros(len(METRICS[self._task]), tf.float64))
        num_rows = tf.shape(target)[0]
        _, gradients, totals = tf.while_loop(lambda start, *_: start < num_rows, body, start, parallel_iterations=1)
        return gradients, totals

    def _pass(self, x: list[Tensor], target: Tensor, scale: Tensor) -> tuple[list[Tensor], Tensor]:
        model = self._state.model
        with tf.GradientTape() as tape:
            totals = run_forward(model, self._spec, self._task, x, target, scale[0])
            loss = totals[0] / scale[1]
        variables = model.trainable_variables
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        # with a side of 1 a gradient's shape is not known to the loop over passes, which must know it
        shaped = [tf.ensure_shape(gradient, of.shape) for gradient, of in zip(gradients, variables, strict=True)]
        return shaped, _stack(totals)

    def _run_validation(self, x: list[Tensor], y: Tensor) -> Tensor:
        return _stack(sums(self._task, call(self._state.evaluated, x, training=False), y))


def _stack(values: Sequence[Tensor]) -> Tensor:
    return tf.stack([tf.cast(value, tf.float64) for value in values])


def _target_spec(data: TrainData, num_classes: int | None = None) -> Any:
    """Describe what the loss takes; ``num_classes`` where classes have weights."""
    if num_classes is not None and data.y_train.dtype == np.int64:
        return tf.TensorSpec([None, num_classes], tf.float32)
    return tf.TensorSpec([None, *data.y_train.shape[1:]], data.y_train.dtype)


def _evaluate(trainer: _Trainer, data: Source, group: Group) -> NDArray[np.float64]:
    totals = np.zeros(len(METRICS[data.head.task]))
    for share in validation_shares(data, group.rank, group.world_size):
        if not share.is_idle:
            totals += trainer.run_validation(list(share.x.values()), share.y).numpy()
    return group.total(totals) / data.num_val_rows
