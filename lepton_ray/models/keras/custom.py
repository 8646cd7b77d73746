"""A user's own model, by import path: only the path travels to workers and into packages, never code."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.tensorflow import call, keras, tf
from lepton_ray.models.keras.layers import entry
from lepton_ray.models.user_code import call_builder, load_builder, wrong
from lepton_ray.spec.model import CustomModel

_ROWS = 2


def build(spec: CustomModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build the model with fresh weights, and let it answer two rows.

    It is built in a thread of its own, where Keras counts the layers without a name from the start: the paths of their
    weights, and so a checkpoint, do not depend on what this process has built before.

    Raises:
        SpecError: If it cannot be imported or built, or gives no logits of the right shape.
    """
    function = load_builder(spec)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_build, function, spec, inputs, num_outputs).result()


def _build(function: Any, spec: CustomModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    with keras.name_scope("_".join(given.name for given in inputs)):
        model = call_builder(function, spec, inputs, num_outputs)
        if not isinstance(model, keras.Model):
            raise wrong(spec, "give a keras.Model for train.framework 'keras'", f"a {type(model).__name__}")
        _try(spec, model, inputs, num_outputs)
        values = [entry(given) for given in inputs]
        return keras.Model(values if len(values) > 1 else values[0], call(model, values, training=None), name="custom")


def _try(spec: CustomModel, model: Any, inputs: Sequence[ModelInput], num_outputs: int) -> None:
    """Run two rows of zeros through the model."""
    rows = [np.zeros((_ROWS, *i.shape), np.float32 if i.num_ids is None else np.int64) for i in inputs]
    with tf.GradientTape() as tape:
        try:
            logits_NC = call(model, rows, training=False)
        except Exception as error:  # a user's model may raise anything
            shapes = ", ".join(f"{i.name} {values.shape}" for i, values in zip(inputs, rows, strict=True))
            raise wrong(spec, f"take the inputs {shapes}", f"{type(error).__name__}: {error}") from error
        is_tensor = tf.is_tensor(logits_NC)
        total = tf.reduce_sum(logits_NC) if is_tensor else None
    if not is_tensor or not logits_NC.dtype.is_floating:
        kind = f"a tensor of {logits_NC.dtype.name}" if is_tensor else f"a {type(logits_NC).__name__}"
        raise wrong(spec, "give one tensor of floating-point logits", kind)
    if logits_NC.shape != (_ROWS, num_outputs):
        wanted = f"give logits of the shape (rows, {num_outputs}), {(_ROWS, num_outputs)} for two rows"
        raise wrong(spec, wanted, str(tuple(logits_NC.shape)))
    _check_weights(spec, model, tape, total)


def _check_weights(spec: CustomModel, model: Any, tape: Any, total: Any) -> None:
    trained = model.trainable_variables
    if not trained:
        raise wrong(spec, "give a model with weights to train", "none")
    gradients = tape.gradient(total, trained)
    if unused := [variable.path for variable, g in zip(trained, gradients, strict=True) if g is None]:
        raise wrong(spec, "use all its weights", f"{unused[0]} unused")
    paths = [variable.path for variable in model.weights]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise wrong(spec, "give each of its layers a name of its own", f"{twice[0]} twice")
    if model.losses:
        raise wrong(spec, "add no loss of its own (train.weight_decay is a penalty)", f"{len(model.losses)}")
