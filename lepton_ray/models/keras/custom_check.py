"""What a user's Keras model must keep, tried with TensorFlow, which tells a weight without a gradient from one of gradient 0."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import call
from lepton_ray.engine.tensorflow import tf
from lepton_ray.models.user_code import ROW_TOLERANCE, ROWS_APART, two_rows, wrong
from lepton_ray.spec.model import CustomModel

_ROWS = 2


def try_rows(spec: CustomModel, model: Any, inputs: Sequence[ModelInput], num_outputs: int) -> None:
    """Run a row of zeros and one of ones through the model, together and each alone.

    Raises:
        SpecError: If it does not keep a rule.
    """
    rows = two_rows(inputs)
    with tf.GradientTape() as tape:
        try:
            logits_NC = call(model, rows, training=False)
        except Exception as error:  # a user's model may raise anything
            shapes = ", ".join(f"{i.name} {values.shape}" for i, values in zip(inputs, rows, strict=True))
            raise wrong(spec, f"take the inputs {shapes}", f"{type(error).__name__}: {error}") from error
        is_tensor = tf.is_tensor(logits_NC)
        total = tf.reduce_sum(logits_NC) if is_tensor else None
    if not is_tensor or logits_NC.dtype != tf.float32:
        kind = f"a tensor of {logits_NC.dtype.name}" if is_tensor else f"a {type(logits_NC).__name__}"
        raise wrong(spec, "give one tensor of float32 logits", kind)
    if logits_NC.shape != (_ROWS, num_outputs):
        wanted = f"give logits of the shape (rows, {num_outputs}), {(_ROWS, num_outputs)} for two rows"
        raise wrong(spec, wanted, str(tuple(logits_NC.shape)))
    # Set by softmax and sigmoid: in the place of their results Keras' losses take what these were given.
    if hasattr(logits_NC, "_keras_logits"):
        rule = "give logits: loss and package take their softmax or sigmoid"
        raise wrong(spec, rule, "the result of one. Leave it out")
    alone = [call(model, [values[row : row + 1] for values in rows], training=False) for row in range(_ROWS)]
    if not np.allclose(np.concatenate(alone), logits_NC, rtol=ROW_TOLERANCE, atol=ROW_TOLERANCE):
        raise wrong(spec, ROWS_APART, "another answer beside another row")
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
