"""A training in Keras whatever computes it: its state, what a step does with gradients, what follows from a step's place.

``keras_loop`` runs this in graphs of TensorFlow, ``jax_loop`` in programs of JAX. Both give weights the same paths, so that a
checkpoint of either is one of the other.
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.engine.keras import call, keras, layers_of
from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.spec.data import Task
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.batches import Batches
from lepton_ray.train.keras_layer_groups import lr_factors
from lepton_ray.train.keras_loss import sums
from lepton_ray.train.progress import Progress, has_stalled, mix, name_splits
from lepton_ray.train.rows import TrainData
from lepton_ray.train.schedule import MOMENTUM, learning_rate

_EPSILON = 1e-8  # as torch; Keras takes 1e-7
_CLIP_EPSILON = 1e-6  # as torch: added to the norm that gradients are divided by

Tensor = Any
Weights = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]


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


def start_state(build_model: Callable[[], Any], spec: TrainSpec, seed: int) -> TrainState:
    """Return the state before the first epoch; equal on all workers."""
    if keras.config.backend() == "tensorflow":
        keras.utils.set_random_seed(seed)
    else:
        # what Keras draws seeds from; its own function imports TensorFlow, where it is, to seed it too
        random.seed(seed)
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
    """Return how many numbers its weights have, frozen ones too; statistics of a normalisation are none, as in torch."""
    # frozen or not
    weights = {id(weight): weight for layer in layers_of(model) for weight in layer._trainable_variables}
    return sum(int(np.prod(weight.shape)) for weight in weights.values())


def _is_decayed(variable: Any) -> bool:
    """Whether it is a weight, not a bias or what scales."""
    return len(variable.shape) > 1


def _build_optimizer(spec: TrainSpec) -> Any:
    if spec.optimizer == "sgd":
        return keras.optimizers.SGD(spec.lr, momentum=MOMENTUM, name="optimizer")
    if spec.optimizer == "adamw":
        return keras.optimizers.AdamW(spec.lr, weight_decay=spec.weight_decay, epsilon=_EPSILON, name="optimizer")
    return keras.optimizers.Adam(spec.lr, epsilon=_EPSILON, name="optimizer")


def weights_of(model: Any) -> Weights:
    """Return copies of the weights, by their paths in the model."""
    return {variable.path: np.array(variable.numpy()) for variable in model.weights}


def run_epochs(
    state: TrainState,
    task: Task,
    spec: TrainSpec,
    feed: Callable[[TrainState], Iterable[float] | None],
    evaluate: Callable[[], Floats],
) -> Iterator[TrainState]:
    """Train until ``spec.epochs`` or early stopping, yielding the state after each leg: ``state.step`` is 0 at an epoch's end.

    Args:
        state: Where to begin; it moves on.
        task: What the model is for.
        spec: How to train.
        feed: Trains a leg of the epoch under way; returns the epoch's metrics, in the order of ``progress.METRICS``, at its end.
        evaluate: Returns those of validation.
    """
    while state.epoch < spec.epochs and not has_stalled(state, spec):
        train = feed(state)
        if train is not None and state.add(name_splits(task, train, evaluate())):
            state.best_weights = weights_of(state.evaluated)
        yield state


def generators_of(model: Any) -> list[Any]:
    """Return the variables that layers draw from: they are no weights, and no checkpoint has them."""
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def seed_layers(model: Any, seed: int, epoch: int, rank: int, step: int = 0) -> None:
    """Let what layers draw in a leg follow from (seed, epoch, rank, its first step)."""
    of_leg = (step,) if step else ()  # an epoch's first leg draws as a whole epoch does
    for place, state in enumerate(generators_of(model)):
        state.assign(np.array([mix(seed, epoch, rank, place, *of_leg), 0], state.dtype))


def is_varied(spec: AugmentSpec | None) -> bool:
    """Whether batches hold more than rows of the data as they are."""
    return spec is not None and spec != AugmentSpec(balance=spec.balance)


def row_batches(data: TrainData, spec: TrainSpec, seed: int) -> Batches:
    """Return batches that are not varied, of the rows' numbers: inputs have one, ``row`` (N, 1)."""
    numbers = np.arange(len(data.y_train))[:, None]
    balance = spec.augment and AugmentSpec(balance=spec.augment.balance)
    rows = replace(data, x_train={"row": numbers}, x_val={"row": numbers[:0]}, y_val=data.y_val[:0])
    return Batches(rows, balance, spec.global_batch_size, seed)


def rates(spec: TrainSpec, epoch: int, step: int, num_steps: int) -> NDArray[np.float32]:
    """Return the learning rate of a step of an epoch, and how far averaged weights move to those of the model."""
    step += epoch * num_steps
    move = 1 - min(spec.average_decay or 0.0, (1 + step) / (10 + step))
    return np.array([learning_rate(spec, step, spec.epochs * num_steps), move], np.float32)


def run_forward(model: Any, spec: TrainSpec, task: Task, x: Sequence[Tensor], target: Tensor, weight: Tensor) -> Any:
    """Return what ``keras_loss.sums`` does of rows that are trained on."""
    with _computed_in(spec.precision, model):
        outputs_NC = keras.ops.cast(call(model, x, training=True), "float32")
        return sums(task, outputs_NC, target, weight)


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


def take_step(state: TrainState, spec: TrainSpec, gradients: list[Tensor], rates_2: Tensor) -> None:
    """Change the weights by the gradients of the joined batch, at the rates of the step."""
    ops, variables = keras.ops, state.model.trainable_variables
    if spec.clip_norm is not None:
        norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
        shrink = ops.minimum(1.0, spec.clip_norm / (norm + _CLIP_EPSILON))
        gradients = [gradient * shrink for gradient in gradients]
    decay = 0.0 if spec.optimizer == "adamw" else spec.weight_decay  # Keras' own is AdamW's
    if decay:
        gradients = [g + decay * v if _is_decayed(v) else g for g, v in zip(gradients, variables, strict=True)]
    _set_rate(state.optimizer, rates_2[0])
    factors = lr_factors(state.model)
    before = [
        (variable, ops.copy(variable), factors[id(variable)]) for variable in variables if id(variable) in factors
    ]
    state.optimizer.apply(gradients, variables)
    for variable, value, factor in before:  # a step is as long as its rate, whatever the optimizer
        variable.assign(value + factor * (variable - value))
    if state.averaged is not None:
        _average(state.averaged, state.model, rates_2[1])


def _set_rate(optimizer: Any, rate: Tensor) -> None:
    """Set the learning rate of the next step. SGD's momentum holds gradients times rates: torch's holds gradients alone."""
    if isinstance(optimizer, keras.optimizers.SGD):
        for momentum in optimizer.momentums:
            momentum.assign(momentum * (rate / optimizer.learning_rate))
    optimizer.learning_rate.assign(rate)


def _average(averaged: Any, model: Any, move: Tensor) -> None:
    """Move the averaged weights towards those of the model; what is not trained is taken as it is."""
    for mean, value in zip(averaged.trainable_weights, model.trainable_weights, strict=True):
        mean.assign_add(move * (value - mean))
    for kept, value in zip(averaged.non_trainable_weights, model.non_trainable_weights, strict=True):
        kept.assign(value)
