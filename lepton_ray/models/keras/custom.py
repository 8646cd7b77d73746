"""A user's own model, by import path: only the path travels to workers and into packages, never code."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.extras import require
from lepton_ray.engine.keras import call, keras
from lepton_ray.models.keras.layers import entry
from lepton_ray.models.user_code import call_builder, load_builder, wrong
from lepton_ray.spec.model import CustomModel

_CHECK = "lepton_ray.models.keras.custom_check"


def build(spec: CustomModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build the model with fresh weights, and let it answer two rows where Keras is on TensorFlow, as it is in every driver.

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
            raise wrong(spec, "give a keras.Model for train.framework 'keras' and 'jax'", f"a {type(model).__name__}")
        if keras.config.backend() == "tensorflow":
            require(_CHECK, "a model of kind 'custom'").try_rows(spec, model, inputs, num_outputs)
        values = [entry(given) for given in inputs]
        return keras.Model(values if len(values) > 1 else values[0], call(model, values, training=None), name="custom")
