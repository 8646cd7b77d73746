"""The training loop in Keras on TensorFlow: the contract of ``torch_loop``, to the meaning of each setting.

An epoch is one call of a graph that holds the data as tensors: its steps are those of a plain loop to the bit, without
Python between them. Where batches are augmented, which NumPy does, or streamed, each step is a call of its own.

A step adds the gradients of all workers' shares up, weighted so that their sum is the gradient of the joined batch. Workers
start from equal weights and take equal steps, so nothing else is exchanged: Keras' own ``fit`` does not synchronise them.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.engine.tensorflow import call, keras, layers_of, tf
from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.batches import Batches, Share, Source, TrainData, validation_shares
from lepton_ray.train.keras_loss import sums
from lepton_ray.train.progress import METRICS, Progress, has_stalled, mix, name_splits
from lepton_ray.train.schedule import learning_rate

_MOMENTUM = 0.9
_EPSILON = 1e-8  # as torch; Keras takes 1e-7
_CLIP_EPSILON = 1e-6  # as torch: added to the norm that gradients are divided by

Tensor = Any
Weights = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Group:
    """This process among the workers of a training; the default is alone."""

    rank: int = 0
    world_size: int = 1
    add_up: Callable[[Sequence[Tensor]], list[Tensor]] = list
    """Sums tensors over all workers; called within a graph."""
    total: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda numbers: numbers
    """Sums numbers over all workers."""


@dataclass
class TrainState(Progress):
    """All that training resumes from."""

    model: Any
    optimizer: Any
    averaged: Any = None
    """The model with the moving average of the weights, where one is kept."""
    best_weights: Weights = field(default_factory=dict)

    @property
    def evaluated(self) -> Any:
        """The model whose weights are evaluated and kept."""
        return self.averaged or self.model


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


def start_state(build_model: Callable[[], Any], spec: TrainSpec, seed: int) -> TrainState:
    """Return the state before the first epoch; equal on all workers."""
    keras.utils.set_random_seed(seed)
    model = build_model()
    optimizer = _build_optimizer(spec)
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if not _is_decayed(v)])
    optimizer.build(model.trainable_variables)
    return TrainState(model, optimizer, None if spec.average_decay is None else _twin(model, build_model))


def _twin(model: Any, build_model: Callable[[], Any]) -> Any:
    """Return another model with the same weights, by the same paths."""
    twin = build_model()
    twin.set_weights(model.get_weights())
    return twin


def num_parameters(model: Any) -> int:
    """Return how many numbers are learned."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def _is_decayed(variable: Any) -> bool:
    """Whether it is a weight, not a bias or what scales."""
    return len(variable.shape) > 1


def _build_optimizer(spec: TrainSpec) -> Any:
    if spec.optimizer == "sgd":
        return keras.optimizers.SGD(spec.lr, momentum=_MOMENTUM, name="optimizer")
    if spec.optimizer == "adamw":
        return keras.optimizers.AdamW(spec.lr, weight_decay=spec.weight_decay, epsilon=_EPSILON, name="optimizer")
    return keras.optimizers.Adam(spec.lr, epsilon=_EPSILON, name="optimizer")


def train_epochs(
    state: TrainState, data: Source, spec: TrainSpec, seed: int, group: Group | None = None
) -> Iterator[TrainState]:
    """Train until ``spec.epochs`` or early stopping, yielding the state after each leg: ``state.step`` is 0 at an epoch's end."""
    group = group or Group()
    trainer = _Trainer(state, data.head, spec, group)
    if isinstance(data, TrainData) and not _is_varied(spec.augment):
        feed = _run_whole(trainer, data, spec, seed)
    else:
        feed = _run_varied(trainer, data, spec, seed)
    while state.epoch < spec.epochs and not has_stalled(state, spec):
        _seed_layers(state.model, seed, state.epoch, group.rank, state.step)
        train = feed(state)
        if train is not None and state.add(name_splits(data.head.task, train, _evaluate(trainer, data, group))):
            state.best_weights = weights_of(state.evaluated)
        yield state


def weights_of(model: Any) -> Weights:
    """Return copies of the weights, by their paths in the model."""
    return {variable.path: np.array(variable.numpy()) for variable in model.weights}


def _is_varied(spec: AugmentSpec | None) -> bool:
    """Whether batches hold more than rows of the data as they are."""
    return spec is not None and spec != AugmentSpec(balance=spec.balance)


def _seed_layers(model: Any, seed: int, epoch: int, rank: int, step: int) -> None:
    """Let what layers draw in a leg follow from (seed, epoch, rank, step): the state of their generators is no weight."""
    weights = {id(variable) for variable in model.weights}
    of_leg = (step,) if step else ()  # an epoch's first leg draws as a whole epoch does
    generators = [variable for variable in model.variables if id(variable) not in weights]
    for place, state in enumerate(generators):
        state.assign(np.array([mix(seed, epoch, rank, place, *of_leg), 0], state.dtype))


Feed = Callable[[TrainState], Sequence[float] | None]
"""Trains a leg of the epoch under way; returns the epoch's metrics at its end, in the order of ``progress.METRICS``."""


def _run_whole(trainer: "_Trainer", data: TrainData, spec: TrainSpec, seed: int) -> Feed:
    """Hold the data as tensors and run an epoch as one call; batches are made of the rows' numbers."""
    group = trainer.group
    numbers = np.arange(len(data.y_train))[:, None]
    balance = spec.augment and AugmentSpec(balance=spec.augment.balance)
    rows = TrainData({"row": numbers}, data.y_train, {"row": numbers[:0]}, data.y_val[:0], data.task)
    batches = Batches(rows, balance, spec.global_batch_size, seed)
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
            np.array([_rates(spec, state.epoch, step, batches.num_steps) for step in range(batches.num_steps)]),
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
            rates = _rates(spec, state.epoch, step, batches.num_steps)
            totals += trainer.run_step(list(share.x.values()), trainer.targets(share), _scale(share), rates).numpy()
            weight += share.batch_weight
        means = state.add_steps(step + 1 - first_step, group.total(totals).tolist(), weight)
        return means if state.step == batches.num_steps else None

    return feed


def _scale(share: Share) -> NDArray[np.float32]:
    """Return what the share's summed loss is multiplied by to count, and what it is divided by to step."""
    return np.array([0.0 if share.is_idle else 1.0, share.batch_weight], np.float32)


def _rates(spec: TrainSpec, epoch: int, step: int, num_steps: int) -> NDArray[np.float32]:
    """Return the learning rate of a step of an epoch, and how far averaged weights move to those of the model."""
    step += epoch * num_steps
    move = 1 - min(spec.average_decay or 0.0, (1 + step) / (10 + step))
    return np.array([learning_rate(spec, step, spec.epochs * num_steps), move], np.float32)


class _Trainer:
    """The graphs of a training: a step, an epoch of steps, a batch of validation."""

    def __init__(self, state: TrainState, data: TrainData, spec: TrainSpec, group: Group) -> None:
        self.group = group
        self._model, self._optimizer = state.model, state.optimizer
        self._averaged, self._evaluated = state.averaged, state.evaluated
        self._precision, self._max_rows = spec.precision, spec.max_rows_per_pass
        self._task = data.task
        self._num_outputs = int(state.model.output_shape[-1])
        self._clip_norm = spec.clip_norm
        self._decay = 0.0 if spec.optimizer == "adamw" else spec.weight_decay  # Keras' own is AdamW's
        x = [tf.TensorSpec([None, *values.shape[1:]], values.dtype) for values in data.x_train.values()]
        rows = tf.TensorSpec([None], tf.int64)
        has_weights = spec.augment is not None and (spec.augment.mixup_alpha > 0 or spec.augment.balance == "weights")
        targets = _target_spec(data, self._num_outputs if has_weights else None)
        scales = [tf.TensorSpec([None, 2], tf.float32), tf.TensorSpec([2], tf.float32)]
        rates = [tf.TensorSpec([None, 2], tf.float32), tf.TensorSpec([2], tf.float32)]
        self.run_epoch = tf.function(self._run_epoch, [x, rows, targets, rows, scales[0], rates[0]], autograph=False)
        self.run_step = tf.function(self._step, [x, targets, scales[1], rates[1]], autograph=False)
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

    def _step(self, x: list[Tensor], target: Tensor, scale: Tensor, rates: Tensor) -> Tensor:
        """Take a step and return what ``keras_loss.sums`` does."""
        variables = self._model.trainable_variables
        gradients, totals = self._gradients(x, target, scale)
        gradients = self.group.add_up(gradients)
        if self._clip_norm is not None:
            norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(g)) for g in gradients]))
            shrink = tf.minimum(1.0, self._clip_norm / (norm + _CLIP_EPSILON))
            gradients = [g * shrink for g in gradients]
        if self._decay:
            gradients = [
                g + self._decay * v if _is_decayed(v) else g for g, v in zip(gradients, variables, strict=True)
            ]
        self._set_rate(rates[0])
        self._optimizer.apply(gradients, variables)
        if self._averaged is not None:
            self._average(rates[1])
        return totals

    def _gradients(self, x: list[Tensor], target: Tensor, scale: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the gradients of all rows and what ``keras_loss.sums`` does, one pass after another."""
        size = self._max_rows
        if size is None:
            return self._pass(x, target, scale)

        def body(start: Tensor, gradients: list[Tensor], totals: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
            rows = slice(start, start + size)
            more, more_totals = self._pass([values[rows] for values in x], target[rows], scale)
            return start + size, [g + m for g, m in zip(gradients, more, strict=True)], totals + more_totals

        nothing = [tf.zeros_like(variable) for variable in self._model.trainable_variables]
        start = (tf.constant(0), nothing, tf.zeros(len(METRICS[self._task]), tf.float64))
        num_rows = tf.shape(target)[0]
        _, gradients, totals = tf.while_loop(lambda start, *_: start < num_rows, body, start, parallel_iterations=1)
        return gradients, totals

    def _pass(self, x: list[Tensor], target: Tensor, scale: Tensor) -> tuple[list[Tensor], Tensor]:
        with tf.GradientTape() as tape, _computed_in(self._precision, self._model):
            outputs_NC = tf.cast(call(self._model, x, training=True), tf.float32)
            totals = [value * scale[0] for value in sums(self._task, outputs_NC, target)]
            loss = totals[0] / scale[1]
        gradients = tape.gradient(loss, self._model.trainable_variables)
        return [tf.convert_to_tensor(gradient) for gradient in gradients], _stack(totals)

    def _average(self, move: Tensor) -> None:
        """Move the averaged weights towards those of the model; what is not trained is taken as it is."""
        for mean, value in zip(self._averaged.trainable_weights, self._model.trainable_weights, strict=True):
            mean.assign_add(move * (value - mean))
        pairs = zip(self._averaged.non_trainable_weights, self._model.non_trainable_weights, strict=True)
        for kept, value in pairs:
            kept.assign(value)

    def _set_rate(self, rate: Tensor) -> None:
        """Set the learning rate of the next step. SGD's momentum holds gradients times rates: torch's holds gradients alone."""
        if isinstance(self._optimizer, keras.optimizers.SGD):
            for momentum in self._optimizer.momentums:
                momentum.assign(momentum * (rate / self._optimizer.learning_rate))
        self._optimizer.learning_rate.assign(rate)

    def _run_validation(self, x: list[Tensor], y: Tensor) -> Tensor:
        return _stack(sums(self._task, call(self._evaluated, x, training=False), y))


@contextlib.contextmanager
def _computed_in(precision: str, model: Any) -> Iterator[None]:
    """Let a model compute in a precision where it is called within; its weights and their gradients stay float32."""
    layers = layers_of(model) if precision == "bfloat16" else []
    before = [layer.dtype_policy for layer in layers]
    for layer in layers:
        layer.dtype_policy = "mixed_bfloat16"
    try:
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


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
